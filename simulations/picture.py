"""A partition as one looks at it: which classes each client has, and how many samples."""

import io

import numpy as np

_SHOWN = 100  # clients; of more, so many at equal distances by size


def picture(labels: np.ndarray, parts: list[np.ndarray], names: tuple[str, ...], title: str) -> bytes:
    """A PNG: shares of classes by client, the largest client first, and how sizes are spread.

    Args:
        labels: classes of all samples, (n,).
        parts: which samples each client has.
        names: of the classes.
        title: above it.
    """
    from matplotlib.figure import Figure

    counts = np.stack([np.bincount(labels[rows], minlength=len(names)) for rows in parts])
    order = np.argsort(-counts.sum(1), kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).astype(int))]
    shares = counts[shown] / counts[shown].sum(1, keepdims=True)
    figure = Figure(figsize=(11, 1.8 + 0.28 * max(8, min(20, len(names)))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
    image = left.imshow(shares.T, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=left, label="share of the client's samples")
    rows = range(0, len(names), max(1, len(names) // 20))
    left.set_yticks(list(rows), [names[row] for row in rows])
    left.set_xticks([])
    some = "" if len(shown) == len(parts) else f", {len(shown)} of {len(parts):,}"
    left.set_xlabel(f"clients by size, the largest first{some}")
    left.set_title("classes")
    right.hist(counts.sum(1), bins=min(30, max(5, len(parts))), color="#3b528b")
    right.set_xlabel("samples of a client")
    right.set_ylabel("clients")
    right.set_title("sizes")
    figure.suptitle(title)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110, metadata={"Software": None})
    return held.getvalue()


def words(labels: np.ndarray, parts: list[np.ndarray]) -> str:
    """The same in a line."""
    sizes = np.asarray([len(rows) for rows in parts])
    kinds = np.asarray([len(np.unique(labels[rows])) for rows in parts])
    return (
        f"{len(parts):,} clients with {sizes.min():,} to {sizes.max():,} samples (median {np.median(sizes):,.0f}) "
        f"and {kinds.min()} to {kinds.max()} classes"
    )
