"""Networks: plain modules that map images to latents and back, and a discriminator."""

from nsvq.networks.conv import ConvDecoder, ConvEncoder
from nsvq.networks.ldm import LDMDecoder, LDMEncoder
from nsvq.networks.patchgan import PatchDiscriminator

__all__ = ["ConvDecoder", "ConvEncoder", "LDMDecoder", "LDMEncoder", "PatchDiscriminator"]
