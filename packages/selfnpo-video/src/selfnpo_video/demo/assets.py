"""Where the video demo's model and its judges lie in the package."""

from selfnpo_video.models import SHIPPED as FOLDER

__all__ = ["FOLDER"]
