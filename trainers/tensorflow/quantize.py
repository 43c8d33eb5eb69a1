"""Weight clustering and quantization-aware training through TF-MOT; both keep zeros and clusters that are there."""

from __future__ import annotations

import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import (
    default_8bit_cluster_preserve_quantize_scheme as clustered_scheme,
)
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
    default_8bit_prune_preserve_quantize_scheme as pruned_scheme,
)


def clustered(model: tf_keras.Model, clusters: int, sparse: bool) -> tf_keras.Model:
    """A copy of the model whose kernels share `clusters` values each, trainable; `sparse`: zeros stay zero."""
    # Cluster wrappers take the layers they are given into pieces.
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return cluster.cluster_weights(
        copy,
        number_of_clusters=clusters,
        cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
        preserve_sparsity=sparse,
    )


def stripped(model: tf_keras.Model) -> tf_keras.Model:
    """The model without the wrappers, its kernels clustered."""
    return tfmot.clustering.keras.strip_clustering(model)


def fake_quantized(model: tf_keras.Model, sparse: bool, clusters: int) -> tf_keras.Model:
    """A copy of the model with int8 fake quantization, trainable. Zeros and clusters survive where told they exist.

    Plain QAT trains the zeros of a pruned network away.
    """
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    if clusters:
        scheme = clustered_scheme.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=sparse)
    elif sparse:
        scheme = pruned_scheme.Default8BitPrunePreserveQuantizeScheme()
    else:
        scheme = tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme()
    return tfmot.quantization.keras.quantize_apply(annotated, scheme)
