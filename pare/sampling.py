"""What is worth a training: pure functions for searches with several objectives, of Pare's or of your own.

    from pare.sampling import Surrogate, gain_share, promotes

    model = Surrogate("maximize").fit(points, accuracies)
    accuracy, doubt = model.predict([candidate])
    share = gain_share(front, ["maximize", "minimize"], [0.97, 120.0], [[accuracy[0], 31.5]], [[doubt[0], 0.0]])
    if share[0] < 0.003: ...  # not worth its training: latency is known, accuracy well enough

    promotes(low, high, ["maximize", "minimize"], row=-1 % len(low), share=0.5)  # the newest of this rung's results

They need NumPy, SciPy and scikit-learn, and neither a study nor a tracking server.
"""

from search.front.pareto import displaces, front, hypervolume, noise_front
from search.sampling.encoding import features
from search.sampling.gain import expected_gain, front_probability, gain_share, spread
from search.sampling.rungs import best_first, promotable, promotes, ranks
from search.sampling.surrogate import Surrogate

__all__ = [
    "Surrogate",
    "best_first",
    "displaces",
    "expected_gain",
    "features",
    "front",
    "front_probability",
    "gain_share",
    "hypervolume",
    "noise_front",
    "promotable",
    "promotes",
    "ranks",
    "spread",
]
