"""The only places that import lightly, timm and Lightning."""
