"""Image models on videos: the objects of a frame keep the identities that they had in the frames before."""
# Q queries, N of them that may be segments, K classes, C channels, (H, W) pixels of a frame, (h4, w4) cells of its
# masks at stride 4, (h, w) of these without the padding.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former.deploy.predictor import Predictor
from mask2former.deploy.results import ClassInfo, Segmentation, Task, segmentation_of
from mask2former.deploy.segment_editing import keep_segments
from mask2former.deploy.tracking import (
    STUFF,
    Sightings,
    best_of_each_object,
    centers,
    matched_pairs,
    moved,
    without_padding,
)
from mask2former.maskformer_model import ImagePrediction, MaskFormer
from mask2former.modeling.postprocessing import image_results

__all__ = ["LOST_FRAMES", "FrameTracker"]

#: So many frames after it was last seen an object is forgotten.
LOST_FRAMES = 30
# With this share of the score that a segment needs a query may be an object that is known, though no new one.
_WEAK_SHARE = 0.5


@dataclass
class _Track:
    """What is remembered of an object."""

    kind: int  # the class of a thing, else STUFF
    last_seen: int = -1  # number of the frame
    embedding: Tensor = field(default_factory=lambda: torch.empty(0))  # (C,)
    mask: Tensor = field(default_factory=lambda: torch.empty(0))  # (h, w) bool
    center: tuple[float, float] = (0.0, 0.0)  # of the mask (row, column), as shares of h and w
    velocity: tuple[float, float] = (0.0, 0.0)  # of the center, per frame
    logits: tuple[Tensor, Tensor] | None = None  # smoothed: of the classes (K + 1,), of the mask (h4, w4)
    identity: int | None = None  # from its first segment on

    def move_to(self, center: tuple[float, float], frame: int) -> None:
        """It is seen there in this frame; what was measured before counts half for the velocity."""
        if self.last_seen >= 0:
            steps = frame - self.last_seen
            down, right = ((new - old) / steps for new, old in zip(center, self.center, strict=True))
            self.velocity = (self.velocity[0] + down) / 2, (self.velocity[1] + right) / 2
        self.center, self.last_seen = center, frame

    def expected_mask(self, frame: int, size: tuple[int, int]) -> Tensor:
        """Where it should be in this frame if it moves evenly: (h, w) of this size."""
        mask = F.interpolate(self.mask[None, None].float(), size=size)[0, 0] > 0
        steps = frame - self.last_seen
        return moved(mask, (steps * self.velocity[0], steps * self.velocity[1]))


class FrameTracker:
    """Segments one frame after the other with an image model.

    Objects are remembered for `LOST_FRAMES` frames, so memory does not grow with the length of the video. A frame of
    another size than the one before is taken as the same view in another resolution.
    """

    def __init__(
        self,
        predictor: Predictor,
        classes: Sequence[ClassInfo],
        task: Task,
        *,
        smoothing: float = 0.0,
        threshold: float | None = None,
    ) -> None:
        """Args:
        predictor: of a `MaskFormer` for images.
        classes: of its dataset.
        task: "panoptic" or "instance".
        smoothing: share of the past, from 0 to less than 1, in the class and mask logits of an object that was there
            in the frame before: logits(t) = share * logits(t - 1) + (1 - share) * those of the network.
        threshold: score that a segment needs. None: MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD in panoptic results,
            0.5 for instances.
        """
        model = predictor.model
        assert isinstance(model, MaskFormer), "objects are followed by the queries of a MaskFormer"
        if threshold is None:
            threshold = model.object_mask_threshold if task == "panoptic" else 0.5
        self._predictor, self._model = predictor, model
        self._classes = tuple(classes)
        self._task = task
        self._smoothing = smoothing
        self._threshold = threshold
        thing_ids = [index for index, info in enumerate(classes) if info.is_thing]
        self._thing_ids = torch.tensor(thing_ids, dtype=torch.int64, device=model.device)
        self._settings = replace(
            model.result_settings,
            semantic_output=None,
            panoptic_on=task == "panoptic",
            instance_output="run_lengths" if task == "instance" else None,
            thing_ids=thing_ids,
            object_mask_threshold=threshold,
        )
        self._tracks: list[_Track] = []
        self._identity_of_stuff: dict[int, int] = {}
        self._new_identities = count(1)
        self._frame = -1

    @torch.inference_mode()
    def __call__(self, frame: NDArray[np.uint8]) -> Segmentation:
        """The segments of the next frame, (H, W, 3) uint8 RGB, each with a `track_id`, counted from 1.

        A class of stuff is one object. Of instances that are one object twice only the best is kept.
        """
        self._frame += 1
        prediction: ImagePrediction = self._model.predict([self._predictor.prepare(frame)])[0]
        scores_Q, classes_Q = prediction.class_logits.softmax(dim=-1)[:, :-1].max(dim=-1)
        queries_N = (scores_Q > _WEAK_SHARE * self._threshold).nonzero().squeeze(1)
        class_logits_NK, mask_logits_Nhw = prediction.class_logits[queries_N], prediction.mask_logits(queries_N)

        kinds_N = torch.where(torch.isin(classes_Q, self._thing_ids), classes_Q, STUFF)[queries_N]
        inside_Nhw = without_padding(mask_logits_Nhw, prediction.sizes) > 0
        found = Sightings(inside_Nhw, prediction.masks.embeddings[0, queries_N], kinds_N)
        best = best_of_each_object(found, scores_Q[queries_N])
        tracks = self._find_tracks(found, scores_Q[queries_N], best)
        if self._smoothing:
            self._mix_past_in(class_logits_NK, mask_logits_Nhw, tracks)
            found = found._replace(masks=without_padding(mask_logits_Nhw, prediction.sizes) > 0)
        center_of = centers(found.masks)
        for place, track in tracks.items():
            track.move_to(center_of[place], self._frame)
            track.embedding, track.mask = found.embeddings[place].clone(), found.masks[place].clone()
            if self._smoothing:
                track.logits = (class_logits_NK[place].clone(), mask_logits_Nhw[place].clone())
        self._tracks = [track for track in self._tracks if self._frame - track.last_seen < LOST_FRAMES]

        # No other query can become a segment.
        results = image_results(
            class_logits_NK, lambda places: mask_logits_Nhw[places], prediction.sizes, self._settings, with_queries=True
        )
        if self._task == "instance":  # a query may have a class and no pixel
            seen = torch.from_numpy(np.flatnonzero(coco_mask.area(results["instances"].pred_masks.rles)))
            results = {name: values[seen] for name, values in results.items()}
        segmentation = segmentation_of(results, self._task, self._classes)
        places: list[int] = results[f"{self._task}_queries"].tolist()
        return self._with_identities(segmentation, [tracks.get(best[place]) for place in places])

    def _find_tracks(self, found: Sightings, scores_N: Tensor, best: list[int]) -> dict[int, _Track]:
        """By place among the N, for those that stand for an object: its track, a known or a new one."""
        distinct = [place for place, other in enumerate(best) if place == other]
        known = self._known(found)
        pairs = matched_pairs(known, Sightings(*(values[distinct] for values in found)))
        tracks = {distinct[column]: self._tracks[row] for row, column in pairs}
        is_strong = (scores_N > self._threshold).tolist()
        for place in distinct:
            if place not in tracks and is_strong[place]:
                tracks[place] = _Track(int(found.kinds[place]))
                self._tracks.append(tracks[place])
        return tracks

    def _known(self, found: Sightings) -> Sightings:
        """Where the tracks should be now and how they looked, in the resolution of what is found."""
        if not self._tracks:
            return Sightings(*(values[:0] for values in found))
        size = (found.masks.shape[1], found.masks.shape[2])
        return Sightings(
            torch.stack([track.expected_mask(self._frame, size) for track in self._tracks]),
            torch.stack([track.embedding for track in self._tracks]),
            torch.tensor([track.kind for track in self._tracks], device=found.kinds.device),
        )

    def _mix_past_in(self, class_logits_NK: Tensor, mask_logits_Nhw: Tensor, tracks: dict[int, _Track]) -> None:
        """In place. What an object that was hidden looked like before would be a ghost: it starts anew."""
        for place, track in tracks.items():
            if track.logits is None or track.last_seen != self._frame - 1:
                continue
            past_class_logits, past_mask_logits = track.logits
            size = mask_logits_Nhw.shape[1:]
            resized = F.interpolate(past_mask_logits[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
            class_logits_NK[place].lerp_(past_class_logits, self._smoothing)
            mask_logits_Nhw[place].lerp_(resized, self._smoothing)

    def _with_identities(self, segmentation: Segmentation, tracks: Sequence[_Track | None]) -> Segmentation:
        """Args:
        segmentation: of this frame.
        tracks: of each segment; for stuff they do not count.
        """
        identities: dict[int, int] = {}  # by index of a segment, of those that are kept
        for index, (segment, track) in enumerate(zip(segmentation.segments, tracks, strict=True)):
            if not segment.is_thing and self._task == "instance":
                continue  # as in images: a model of both knows classes that have no instances
            if not segment.is_thing:
                if segment.category not in self._identity_of_stuff:
                    self._identity_of_stuff[segment.category] = next(self._new_identities)
                identities[index] = self._identity_of_stuff[segment.category]
            elif track is not None and (segment.score is None or segment.score >= self._threshold):
                if track.identity is None:
                    track.identity = next(self._new_identities)
                if track.identity not in identities.values():
                    identities[index] = track.identity
        return keep_segments(segmentation, identities)
