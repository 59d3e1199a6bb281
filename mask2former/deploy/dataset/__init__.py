"""Segmenting whole data sets, by the processes of one machine or on a Ray cluster, so that a kill at any moment costs
only the work since the last shard."""
