"""Deformable DETR (Zhu et al. 2021) on plain PyTorch operators, with image-label supervision.

Parameters are named as in the public Deformable DETR (``detr.transformer.encoder.layers.0.self_attn
.sampling_offsets.weight``, ``detr.class_embed.0.weight``), which the published Detic DETR models are
said to follow. This is a best effort: no key list of such a checkpoint was available to compare.
"""
