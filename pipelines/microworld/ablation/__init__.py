"""The paper's ablation in the micro-world: every method, trained on the same shards, judged on scenes none has seen.

``study`` reads from top to bottom. ``settings`` says how large it is, ``cells`` which runs there are, ``prepare`` makes
what they share, ``work`` does them. ``results`` gathers their scores, ``bootstrap`` compares them, ``claims`` holds
them against the paper's, and ``world`` says what world they come from; ``report``, ``plots`` and ``pictures`` write it
down.
"""
