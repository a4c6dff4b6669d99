"""Train and evaluate: python main.py --config=configs/digits_coarse.py"""

from ancor_jax import cli

if __name__ == '__main__':
    cli.main()
