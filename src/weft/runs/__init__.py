"""One run from its settings to its folder: prepared, played round by round, saved, resumed, compared with baselines."""
