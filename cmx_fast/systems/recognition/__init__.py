"""Segmentation and classification by the survey's attention modules, each beside the same network without one."""
