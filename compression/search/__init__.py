"""Search for the smallest artifact that is still right: `study.run` with a budget from `budget.parse`.

First what each layer bears alone, then techniques alone, then what Optuna draws; the Pareto front comes out.
"""
