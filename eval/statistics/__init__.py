"""Statistics of results by item, question and subject; pure, numpy only.

    pairing.py          two results by item -> the differences of the items that they share
    estimates.py        a mean with its standard error, over items, over questions (clusters), over subjects (strata)
    intervals.py        Student's t and Wilson's interval
    bootstrap.py        percentile intervals of a mean, by resampling items or questions
    mcnemar.py          the exact test that items changed for the worse; wins, ties and losses
    loss_test.py        the test that a loss exceeds a tolerance (non-inferiority), for a guard
    paired_scores.py    the score test and interval of a paired loss of binary items
    holm.py             correction of the p-values of a family of tests
    power.py            the smallest difference that a test can see
    length_control.py   the judged difference at equal length
    distributions.py    tails and quantiles of the normal and of Student's t distribution

A difference is always the later result minus the earlier one, a loss the earlier minus the later, both in the unit of
the values. A quantity that the data cannot give, like the standard error of one value, is None; nothing is NaN.
"""
