"""Run units on workers: in this process, or on Ray actors. Both yield the same reports and write the same bytes.

``scheduler`` decides what goes where and knows neither Ray nor clocks; ``pool`` drives Ray actors by it; ``worker`` is
what runs in an actor; ``cluster`` connects to Ray; ``serial`` does without; ``stop`` is how a run is asked to end.
"""
