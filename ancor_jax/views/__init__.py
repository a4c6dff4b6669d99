"""Views of images: random training views, evaluation views, and the image operations of both."""
