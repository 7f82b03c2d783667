"""Long models of other architectures (Longformer, BigBird …), converted with equal outputs. One file each."""
