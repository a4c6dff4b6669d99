"""What the host does with images, by the name under which earlier versions had it."""

from ancor_jax.data.host_views import evaluation_views
from ancor_jax.data.input_pipeline import batches, epoch_order, prefetch

__all__ = ['batches', 'epoch_order', 'evaluation_views', 'prefetch']
