"""Backbones pretrained on ultrasound video. Importing this registers them in timm."""
