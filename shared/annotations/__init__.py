"""Files of masks that other software wrote: COCO's, SA-1B's, VIA's."""
