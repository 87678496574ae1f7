"""Raw videos and stills to a FrameStore: who is who, what may be used, fingerprints."""
