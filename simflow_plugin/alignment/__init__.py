"""REPA / REPA-E: frozen encoders, projector, loss."""
