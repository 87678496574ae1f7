"""Ultrasound as files give it: reading and transforms."""
