"""csrc/philox.h in Triton: the same words, the same polynomials, the same normals."""

import triton
import triton.language as tl


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on uint32 blocks."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        low0 = c0 * 0xD2511F53
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low1 = c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def minus_two_log(word):
    """-2 log((word / 256 + 1/2) 2^-24)."""
    u = ((word >> 8).to(tl.int32).to(tl.float32) + 0.5) * (2.0**-24)
    offset = u.to(tl.uint32, bitcast=True) - 0x3F3504F3
    exponent = offset.to(tl.int32, bitcast=True) >> 23
    mantissa = ((offset & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    f = mantissa - 1.0
    r = 7.1497537e-2 * f - 1.1571201e-1
    r = r * f + 1.1661511e-1
    r = r * f - 1.2411051e-1
    r = r * f + 1.4249937e-1
    r = r * f - 1.6668481e-1
    r = r * f + 2.0000708e-1
    r = r * f - 2.4999990e-1
    r = r * f + 3.3333331e-1
    log1p = f + f * f * (r * f - 0.5)
    return -2.0 * (log1p + exponent.to(tl.float32) * 0.693147181)


@triton.jit
def cos_sin_turn(word):
    """cos and sin of 2 pi (word / 256) 2^-24."""
    turn = (word >> 8).to(tl.int32)
    quadrant = (turn + (1 << 21)) >> 22
    r = (turn - (quadrant << 22)).to(tl.float32) * (2.0**-24)
    z = r * r
    s = (((4.1472893e1 * z - 7.6697868e1) * z + 8.1605202e1) * z - 4.1341702e1) * z + 6.2831855
    s = r * s
    c = (((5.9220287e1 * z - 8.5442848e1) * z + 6.4939316e1) * z - 1.9739208e1) * z + 1.0
    odd = (quadrant & 1) != 0
    cosine = tl.where(odd, s, c)
    sine = tl.where(odd, c, s)
    cosine = tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    return cosine, sine


@triton.jit
def normals(seed, evaluation, start, BLOCK: tl.constexpr):
    """The normals fp32 [BLOCK] of elements start ... start + BLOCK - 1 (both multiples of 4).

    `seed` int64 and `evaluation` are scalars; each Philox call serves four neighbouring elements.
    """
    block = start // 4 + tl.arange(0, BLOCK // 4).to(tl.int64)
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    zero = tl.zeros_like(c0)
    k0 = zero + seed.to(tl.uint32)
    k1 = zero + (seed >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox4x32(c0, c1, zero + evaluation.to(tl.uint32), zero, k0, k1)
    radius0 = tl.sqrt(minus_two_log(w0))
    radius1 = tl.sqrt(minus_two_log(w2))
    cos0, sin0 = cos_sin_turn(w1)
    cos1, sin1 = cos_sin_turn(w3)
    # join puts its arguments last, so [cos0, cos1] x [sin0, sin1] reads cos0 sin0 cos1 sin1
    pairs = tl.join(
        tl.join(radius0 * cos0, radius1 * cos1), tl.join(radius0 * sin0, radius1 * sin1)
    )
    return pairs.reshape(BLOCK)
