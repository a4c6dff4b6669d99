"""Views of images: random training views, evaluation views, and the image operations that both are made of."""
