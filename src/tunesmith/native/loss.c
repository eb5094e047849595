/* The loss of learnt tokens, given their logits. */
#include "bf16.h"

/* Numbers `column` on of a row, as many as are there; the others are `missing`. */
INLINE __m512 some_logits(const bf16 *row, long column, long size, float missing, __mmask16 *lanes) {
    *lanes = size - column >= LANES ? 0xffff : (__mmask16)((1u << (size - column)) - 1);
    const __m512 found = widen(_mm256_maskz_loadu_epi16(*lanes, row + column));
    return _mm512_mask_blend_ps(*lanes, _mm512_set1_ps(missing), found);
}

/*
 * The negative log-likelihood of each row's target, and whether no token is likelier. If there are weights, the logits
 * become the gradient of the weighted sum by them: weight (softmax - 1 at the target).
 *
 * logits: (rows, size), rows without gaps; targets: (rows,); weights, losses, hits: (rows,). Each row is read three
 * times while it is in the cache; its exponentials are made twice rather than kept.
 */
void cross_entropy(
    bf16 *logits, long rows, long size, const int64_t *targets, const float *weights, float *losses, float *hits,
    long threads
) {
    __mmask16 lanes;
#pragma omp parallel for num_threads(threads) schedule(static) private(lanes) if (threads > 1)
    for (long i = 0; i < rows; i++) {
        bf16 *row = logits + i * size;
        __m512 most = _mm512_set1_ps(-__builtin_inff()), sum = _mm512_setzero_ps();
        for (long j = 0; j < size; j += LANES)
            most = _mm512_max_ps(most, some_logits(row, j, size, -__builtin_inff(), &lanes));
        const float highest = _mm512_reduce_max_ps(most);
        most = _mm512_set1_ps(highest);
        for (long j = 0; j < size; j += LANES)
            sum = _mm512_add_ps(
                sum, exponential(_mm512_sub_ps(some_logits(row, j, size, -__builtin_inff(), &lanes), most))
            );
        const float total = _mm512_reduce_add_ps(sum);
        const float own = _mm512_cvtss_f32(widen(_mm256_set1_epi16((short)row[targets[i]])));
        losses[i] = __builtin_logf(total) - (own - highest);
        hits[i] = own == highest;
        if (weights == 0) continue;
        const __m512 factor = _mm512_set1_ps(weights[i] / total);
        for (long j = 0; j < size; j += LANES) {
            const __m512 logit = some_logits(row, j, size, -__builtin_inff(), &lanes);
            const __m512 slope = _mm512_mul_ps(factor, exponential(_mm512_sub_ps(logit, most)));
            _mm256_mask_storeu_epi16(row + j, lanes, narrow(slope));
        }
        const float likelihood = _mm512_cvtss_f32(exponential(_mm512_set1_ps(own - highest))) / total;
        row[targets[i]] = (bf16)_mm256_extract_epi16(narrow(_mm512_set1_ps(weights[i] * (likelihood - 1.0f))), 0);
    }
}
