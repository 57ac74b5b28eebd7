"""The write of the adaptive working memory (specification 2.7), spread over the next chunk's tokens (8c).

Both softmaxes of a chunk's keys are known when it ends: κ_ja = exp(ak_ja − log_sum_j) over features, and the shares
s_ja = exp(ak_ja − log_mass_a) over positions. The memory M does not change during the next chunk, so
U_a = Σ_j s_ja (v_j − κ_jᵀ M) = Σ_j s_ja v_j − Σ_b P_ba M_b with P_ba = Σ_j κ_jb s_ja. Tokens add to these two sums
over j, both in `memory_sum` [S, H, dz, dv + dz] with P in the last columns: `absorb`. At the chunk's end M joins in:
`update` computes U, `write` the new M, and `start_chunk` the two softmaxes of the chunk that has ended.
"""
