"""v4cli: run DeepSeek-V4 on your own machine."""

__version__ = "0.1.0"
