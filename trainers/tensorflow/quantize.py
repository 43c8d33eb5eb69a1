"""Weight clustering and quantization-aware training through TF-MOT; both keep zeros and clusters that are there."""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import (
    default_8bit_cluster_preserve_quantize_scheme as clustered_scheme,
)
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
    default_8bit_prune_preserve_quantize_scheme as pruned_scheme,
)
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_registry as registry,
)

from trainers.recipe import RecipeError

L = tf_keras.layers


def clustered(model: tf_keras.Model, clusters: int, sparse: bool) -> tf_keras.Model:
    """A copy of the model whose kernels share `clusters` values each, trainable; `sparse`: zeros stay zero."""
    # Cluster wrappers take the layers they are given into pieces.
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    try:
        return cluster.cluster_weights(
            copy,
            number_of_clusters=clusters,
            cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
            preserve_sparsity=sparse,
        )
    except (ValueError, TypeError) as problem:
        raise RecipeError(f"quantization.clusters: TF-MOT cannot cluster this model: {_first(problem)}") from problem


def stripped(model: tf_keras.Model) -> tf_keras.Model:
    """The model without the wrappers, its kernels clustered."""
    return tfmot.clustering.keras.strip_clustering(model)


def fake_quantized(model: tf_keras.Model, sparse: bool, clusters: int) -> tuple[tf_keras.Model, list[str]]:
    """A copy of the model with int8 fake quantization, trainable, and the layers that stay float.

    Zeros and clusters survive where told they exist: plain QAT trains the zeros of a pruned network away. Raises
    RecipeError when TF-MOT can quantize no layer.
    """
    if clusters:
        scheme = clustered_scheme.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=sparse)
    elif sparse:
        scheme = pruned_scheme.Default8BitPrunePreserveQuantizeScheme()
    else:
        scheme = tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme()
    floats = _left_float(model)
    _check_support(scheme)
    try:
        annotated = _annotated(model, floats)
        return tfmot.quantization.keras.quantize_apply(annotated, scheme), floats
    except (ValueError, TypeError, RuntimeError, KeyError) as problem:
        raise RecipeError(
            f"quantization.scheme: qat_int8: TF-MOT cannot quantize this model: {_first(problem)}; choose static_int8"
        ) from problem


def _check_support(scheme: Any) -> None:
    """Let the scheme's registry say the truth: those that keep zeros or clusters claim layers that they then refuse."""
    asked, default = scheme.get_quantize_registry(), registry.Default8BitQuantizeRegistry()
    claims = asked.supports
    asked.supports = lambda layer: default.supports(layer) and claims(layer)
    scheme.get_quantize_registry = lambda: asked


def _annotated(model: tf_keras.Model, floats: list[str]) -> tf_keras.Model:
    if not floats:
        return tfmot.quantization.keras.quantize_annotate_model(model)

    def annotate(layer: Any) -> Any:
        return layer if layer.name in floats else tfmot.quantization.keras.quantize_annotate_layer(layer)

    return tf_keras.models.clone_model(model, clone_function=annotate)


def _left_float(model: tf_keras.Model) -> list[str]:
    """Layers that TF-MOT's scheme does not know; batch normalization counts where it follows a convolution."""
    known, left = registry.Default8BitQuantizeRegistry(), []
    for layer in model.layers:
        if isinstance(layer, L.InputLayer):
            continue
        if isinstance(layer, L.BatchNormalization):
            folds = [isinstance(before, (L.Conv2D, L.Dense)) for before in _before(layer)]
            if folds != [True]:
                left.append(layer.name)
        elif not known.supports(layer):
            left.append(layer.name)
    return left


def _before(layer: Any) -> list[Any]:
    inbound = layer._inbound_nodes[0].inbound_layers if layer._inbound_nodes else []
    return inbound if isinstance(inbound, list) else [inbound]


def _first(problem: Exception) -> str:
    return next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
