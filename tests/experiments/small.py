"""A conversion study of seconds: four heads, a few steps, everything that a real one has."""

from workbench.experiments import Continued, Conversion

STUDY = Conversion(
    n_layers=2,
    n_heads=2,
    d_head=8,
    d_model=16,
    length=32,
    batch=6,
    steps=3,
    window=4,
    n_kept=1,
    kept_counts=(1,),
    continued=(Continued(2),),
    n_random=2,
    n_random_trained=1,
    distances=(8, 16, 20),
    n_sequences=3,
    early=(0.3, 0.6),
    linear="elu",
)
