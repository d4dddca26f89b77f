"""Networks: plain modules that map images to latents and back."""

from nsvq.networks.conv import ConvDecoder, ConvEncoder

__all__ = ["ConvDecoder", "ConvEncoder"]
