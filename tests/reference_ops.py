"""The slow numpy truth of each op: the formulas of csrc/include/ps3 written down once more, plainly, in float64 where it matters.

Nothing here is used by the SDK. Pillow's own resize stands in for step 1 of gather, one axis at a time, so that the order
of its passes is the one the models were trained with whatever Pillow's version does.
"""
import numpy as np
from PIL import Image

COLOR_TABLE = {  # (matrix, full_range): offset, luma, red_v, green_u, green_v, blue_u
    ("bt601", False): (16, 76309, 104597, 25675, 53279, 132201),
    ("bt601", True): (0, 65536, 91881, 22554, 46802, 116130),
    ("bt709", False): (16, 76309, 117489, 13975, 34925, 138438),
    ("bt709", True): (0, 65536, 103206, 12276, 30679, 121609),
}


def yuv_to_rgb(y, u, v, matrix, full_range):
    """(h, w) uint8 luma and chroma of the same size -> (h, w, 3) uint8."""
    offset, luma, red_v, green_u, green_v, blue_u = COLOR_TABLE[matrix, full_range]
    y, u, v = (plane.astype(np.int64) for plane in (y, u, v))
    base, u, v = (y - offset) * luma + 32768, u - 128, v - 128
    colors = np.stack([base + red_v * v, base - green_u * u - green_v * v, base + blue_u * u], axis=-1)
    return np.clip(colors >> 16, 0, 255).astype(np.uint8)


def to_rgb(format, planes, matrix="bt709", full_range=False):
    """Planes of any format -> (h, w, 3) uint8."""
    first = np.asarray(planes[0])
    if format == "RGB":
        return first
    if format == "BGR":
        return first[..., ::-1]
    if format == "RGBA":
        return first[..., :3]
    if format == "BGRA":
        return first[..., 2::-1]
    if format == "GRAY":
        return np.repeat(first[..., None], 3, axis=-1)
    if format == "NV12":
        chroma = np.asarray(planes[1]).reshape(first.shape[0] // 2, first.shape[1] // 2, 2).repeat(2, 0).repeat(2, 1)
        return yuv_to_rgb(first, chroma[..., 0], chroma[..., 1], matrix, full_range)
    quads = first.reshape(first.shape[0], -1, 4)
    luma = quads[..., [0, 2]].reshape(first.shape[0], -1)
    return yuv_to_rgb(luma, quads[..., 1].repeat(2, 1), quads[..., 3].repeat(2, 1), matrix, full_range)


def squash(rgb, base_px):
    """Step 1 of gather: Pillow's bicubic on bytes, columns and then rows -> (S, S, 3) uint8."""
    wide = Image.fromarray(np.ascontiguousarray(rgb)).resize((base_px, rgb.shape[0]), Image.BICUBIC)
    return np.asarray(wide.resize((base_px, base_px), Image.BICUBIC))


def cubic(x, a):
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def taps(base, size, outputs):
    """Step 2 of gather along one axis: a = -0.75, half-pixel centres, no antialias, clamped; positions rounded to f32.

    Returns the pixels (n, 4) that the n outputs sample, and their weights (n, 4).
    """
    position = (np.float64(np.float32(base) / np.float32(size)) * (outputs + 0.5) - 0.5).astype(np.float32)
    first = np.floor(position).astype(int)
    tap = np.arange(-1, 3)
    return np.clip(first[:, None] + tap, 0, base - 1), cubic((position - first).astype(np.float64)[:, None] - tap, -0.75)


def gather(rgb, base_px, size_px, patch_px, ids, mean, std, picture=None):
    """(h, w, 3) uint8 -> (K, 3*P*P) f32. picture: squash(rgb, base_px), when the caller has it."""
    picture = squash(rgb, base_px) if picture is None else picture
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    step = base_px // size_px
    patches = np.empty((len(ids), 3, patch_px, patch_px), np.float32)
    for k, (row, col) in enumerate(zip(*np.divmod(ids, size_px // patch_px))):
        y, x = row * patch_px + np.arange(patch_px), col * patch_px + np.arange(patch_px)
        if base_px % size_px == 0 and step % 2 == 1:  # samples the middle of every step x step pixels
            value = picture[np.ix_(y * step + step // 2, x * step + step // 2)].astype(np.float32)
            patch = (value / np.float32(255) - mean) / std
        else:
            (y_at, y_weight), (x_at, x_weight) = taps(base_px, size_px, y), taps(base_px, size_px, x)
            value = np.einsum("ya,xb,yaxbc->yxc", y_weight, x_weight, picture[y_at[:, :, None, None], x_at], optimize=True)
            patch = (value / 255 - mean) / std
        patches[k] = patch.transpose(2, 0, 1)
    return patches.reshape(len(ids), -1)


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return a @ b / (np.maximum(np.linalg.norm(a, axis=-1), 1e-12) * max(np.linalg.norm(b), 1e-12))


def score(features, view_features, prompt, view_weight, view_bias):
    """-> prob (g, g) f64."""
    grid = int(round(len(features) ** 0.5))
    logit = cosine(features, prompt).reshape(grid, grid)
    if view_features is not None:
        fine = int(round(len(view_features) ** 0.5))
        query = view_weight.astype(np.float64) @ prompt + view_bias
        close = cosine(view_features, query).reshape(fine, fine)
        window = [slice(i * fine // grid, -(-(i + 1) * fine // grid)) for i in range(grid)]
        best = np.array([[close[rows, cols].max() for cols in window] for rows in window])
        logit = (logit + best) / 2
    return 1 / (1 + np.exp(-5 * logit))


def enlarge(prob, rows, cols):
    """Nearest: (h, w) -> (rows, cols)."""
    return prob[(np.arange(rows) * prob.shape[0] // rows)[:, None], np.arange(cols) * prob.shape[1] // cols]


def select(prob, rows, cols, count, taken):
    """-> ids int32 ascending; taken is not changed. A stable sort keeps the lower id first among equals."""
    flat = enlarge(prob, rows, cols).reshape(-1)
    order = np.argsort(-flat, kind="stable")
    return np.sort(order[taken[order] == 0][:count]).astype(np.int32)


def plan_looks(capacity, per_look, num_looks=None, num_tokens=None, all=False, first_scales=None):
    """The reference's loops over looks, as lists of Python integers and true division."""
    full, considered = sum(per_look), sum(capacity[:first_scales] if first_scales else capacity)
    if num_looks == 0 or num_tokens == 0:
        return []
    if num_tokens is not None:
        num_tokens = min(num_tokens, considered)
        looks = -(-num_tokens // full)
    else:
        looks = -(-considered // full) if all else min(num_looks, -(-considered // full))
    left, plan = list(capacity), []
    for look in range(looks):
        counts = list(per_look)
        if num_tokens is not None and look == looks - 1:
            tokens = num_tokens % full or full
            counts = [int(x * tokens / full) for x in counts]
        if first_scales:
            first, total = sum(counts[:first_scales]), sum(counts)
            counts = [(int(x / first * total) if first else 0) if i < first_scales else 1 for i, x in enumerate(counts)]
            counts[-1] = max(0, counts[-1] + full - sum(counts))
        for i in range(len(counts)):
            if left[i] < counts[i]:
                if i + 1 < len(counts):
                    counts[i + 1] += counts[i] - left[i]
                counts[i] = left[i]
            left[i] -= counts[i]
        if sum(counts):
            plan.append(counts)
    return plan


def resample_axis(table, n, axis):
    """Bicubic with antialias, a = -0.5, along one axis."""
    g = table.shape[axis]
    scale = max(g / n, 1.0)
    center = (np.float64(np.float32(g) / np.float32(n)) * (np.arange(n) + 0.5)).astype(np.float32).astype(np.float64)  # as torch rounds it
    distance = (np.arange(g)[None, :] + 0.5 - center[:, None]) / scale
    weight = cubic(distance, -0.5)
    weight = np.where(np.abs(np.arange(g)[None, :] + 0.5 - center[:, None]) < 2 * scale, weight, 0.0)
    weight = weight / weight.sum(axis=1, keepdims=True)
    return np.moveaxis(np.tensordot(weight, table, axes=(1, axis)), 0, axis)


def position_rows(table, g, n, ids, residual=None, crop=False):
    """-> (K, width) f64."""
    grid = table.astype(np.float64).reshape(g, g, -1)
    if crop:
        grid = grid[:n, :n]
    elif n != g:
        grid = resample_axis(resample_axis(grid, n, 0), n, 1)
    rows = grid.reshape(n * n, -1)[ids]
    return rows if residual is None else rows + residual[ids].astype(np.float64)


def scatter(tokens, ids, rows, cols):
    """-> (C, rows, cols) f32."""
    out = np.zeros((rows * cols, tokens.shape[1]), np.float32)
    out[ids] = tokens
    return out.T.reshape(-1, rows, cols)
