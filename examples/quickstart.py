"""Fine-tuning on traces full of forks raises pass@1 and lowers pass@64. Both are computed exactly.

.venv/bin/python examples/quickstart.py        # about two minutes on two cores
"""

import minifork as mf


def main(steps: int = 700, traces: int = 500, epochs: int = 32, n: int = 500) -> None:
    """Train a base and fine-tune it, then print pass@k of both; smaller numbers are faster and show less."""
    task = mf.Star(nodes=10, branches=2, length=3)
    base = mf.pretrain(task, steps=steps, batch=48, width=64, seq_len=32)
    tuned = mf.sft(base, fork_rate=1.0, traces=traces, epochs=epochs)
    test = mf.problems(task, "test", n)
    print(f"{'':<16}{'pass@1':>8}{'pass@16':>8}{'pass@64':>8}")
    for epoch in (None, *tuned.epochs):
        run = base if epoch is None else tuned
        passed = mf.pass_at_k(mf.exact(run.model(epoch), test).p_lo, [1, 16, 64])
        print(f"{'base' if epoch is None else f'SFT, epoch {epoch}':<16}" + "".join(f"{p:>8.3f}" for p in passed))


if __name__ == "__main__":
    main()
