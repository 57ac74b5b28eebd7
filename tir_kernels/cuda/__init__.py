"""Schedules for NVIDIA GPUs.

Decode is seven kernels a layer, each started while its predecessor ends:

    norm_ema          decode/norm_ema.py           timestep norm u of x, and its EMA c
    projections       decode/linear.py             v of u; z, r and h = x + wh1 mx of c, with its RMS norm mx
    attend            decode/attention.py          queries and keys of z; attention to parts of the window; the cache
    merge             decode/attention_merge.py    parts joined, times r, and the read of the working memory
    linear_residual   decode/linear.py             y = h + wh2 times that
    gate              decode/linear.py             layer norm of y, and silu(fc1) times fc3 of it
    linear_residual   decode/linear.py             x or y + fc2 times that

between state/embedding.py and, for logits, decode/timestep_norm.py and `head` of decode/linear.py. Their matrix
products are gemv/gemv.py's: dot.py with dense weights, quantized.py with codes, mma.py for several rows. What
multiplies codes has rows of activations that norm_ema, merge and gate have quantized (quantized/quantize.py).

Prefill, n tokens of one slot, is these kernels a layer:

    timestep_norm_moments   prefill/timestep_norm.py       mean and scale of every token's groups
    norm_ema                prefill/norm_ema.py            u and c
    value_projection        prefill/projections.py         v of u, into the cache; int8: state/value_cache.py quantizes
    rms_norm                prefill/group_norm.py          mx of c
    projections             prefill/projections.py         z, r and h of mx
    attention_inputs        prefill/attention_inputs.py    queries, keys and read weights of z
    attention_statistics    prefill/attention_softmax.py   maxima and sums of the scores of scores.py
    attention_weights       prefill/attention_softmax.py   their softmax
    attention_values        prefill/attention_values.py    weights times values, times r, and the memory's read
    absorb                  memory/absorb.py               what the tokens add to the memory's sums
    linear_residual         prefill/linear.py              y
    layer_norm              prefill/group_norm.py
    gate, linear_residual   prefill/linear.py              the FFN

with matrix products of gemm/. state/ has what a slot's life is: slots.py, sampling.py and score.py; memory/ has the
write of the working memory when a chunk ends. ptx/ are instructions as device functions, decayed_average.py is what
both timestep norms share.
"""
