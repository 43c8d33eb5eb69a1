"""What training minimizes: cross-entropy with the labels, mixed with what a teacher says."""

from __future__ import annotations

import tensorflow as tf

from trainers.recipe import Distillation


def loss(logits: tf.Tensor, labels: tf.Tensor, teacher: tf.Tensor, distillation: Distillation) -> tf.Tensor:
    """Scalar float32: alpha * T^2 * KL(teacher/T, student/T) + (1 - alpha) * CE(labels), means over the batch.

    `logits`, `teacher`: float32 [B, 10]; `labels`: int32 [B]. `hard` takes cross-entropy with the teacher's
    argmax in place of T^2 * KL; `none` is cross-entropy alone. Hinton et al., arXiv:1503.02531.
    """
    with_labels = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    if distillation.kind == "none":
        return with_labels
    if distillation.kind == "hard":
        said = tf.argmax(teacher, axis=-1)
        with_teacher = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(said, logits))
    else:
        with_teacher = _softened_divergence(logits, teacher, distillation.temperature)
    return distillation.alpha * with_teacher + (1.0 - distillation.alpha) * with_labels


def _softened_divergence(logits: tf.Tensor, teacher: tf.Tensor, temperature: float) -> tf.Tensor:
    target = tf.nn.log_softmax(teacher / temperature)
    student = tf.nn.log_softmax(logits / temperature)
    per_sample = tf.reduce_sum(tf.exp(target) * (target - student), axis=-1)
    return temperature**2 * tf.reduce_mean(per_sample)
