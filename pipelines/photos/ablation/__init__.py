"""The ablation on real photos: the same methods and the same machinery as in the micro-world, on a folder of sets.

``data`` says what lies in the folder, ``plan`` which runs there are, ``prepare`` makes what they share. They are
done by ``pipelines.microworld.ablation.work``. ``compare`` holds their scores beside each other; ``report`` and
``pictures`` write it down.
"""
