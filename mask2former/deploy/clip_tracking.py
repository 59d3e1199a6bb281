"""Video models on videos of any length: overlapping clips, whose objects are joined to those of the clips before."""
# N instances of a clip, T frames of a clip, C channels, (H, W) pixels of a frame, (h, w) cells of its masks.

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former.deploy.predictor import Predictor
from mask2former.deploy.results import ClassInfo, Segmentation, segmentation_of
from mask2former.deploy.segment_editing import keep_segments
from mask2former.deploy.tracking import Sightings, matched_pairs, without_padding
from mask2former.evaluation.run_lengths import encode_masks
from mask2former.maskformer_model import ImagePrediction, MaskFormer
from mask2former.modeling.postprocessing import RunLengthMasks, instance_candidates, video_inference

__all__ = ["LOST_CLIPS", "ClipTracker"]

#: After so many clips without it an object is forgotten.
LOST_CLIPS = 5

Sample = dict[str, Any]


@dataclass
class _Clip:
    """What the model says of T frames."""

    start: int  # number of the first frame
    sightings: Sightings  # N instances, masks (N, T, h, w)
    scores: list[float]
    classes: list[int]
    rles: list[list[dict[str, Any]]]  # of each instance in each frame, at the size of the frame
    identities: list[int]
    size: tuple[int, int]  # (H, W)

    @property
    def stop(self) -> int:
        return self.start + self.sightings.masks.shape[1]


@dataclass
class _Track:
    """What is remembered of an object."""

    identity: int
    kind: int  # its class
    embedding: Tensor = field(default_factory=lambda: torch.empty(0))  # (C,)
    last_clip: int = -1  # number of the clip in which it was seen last
    instance: int = -1  # its index there


class ClipTracker:
    """Segments videos in clips of `window` frames, each of which begins with the last `overlap` of the clip before.

    The last clip of a video ends with it and has as many frames as there are, so it may share more. Of the frames that
    two clips share, the first half are shown as the former clip has them and the others as the latter: so every frame
    has others around it. What is kept is one clip and the objects of the last `LOST_CLIPS`: memory does not grow with
    the length of the video. Where the size of the frames changes, a new clip begins that shares no frame.
    """

    def __init__(
        self,
        predictor: Predictor,
        classes: Sequence[ClassInfo],
        *,
        window: int,
        overlap: int,
        threshold: float | None = None,
    ) -> None:
        """Args:
        predictor: of a `MaskFormer` for videos.
        classes: of its dataset.
        window: frames of a clip.
        overlap: frames that two clips share, from 0 to less than `window`. Without any, objects are joined by the
            embeddings of their queries alone.
        threshold: score that an instance needs. None: whatever the rule of the model gives, see `video_inference`.
        """
        assert isinstance(predictor.model, MaskFormer) and predictor.model.is_video, "clips are for models of videos"
        self._predictor, self._model = predictor, predictor.model
        self._classes = tuple(classes)
        self._window, self._overlap = window, overlap
        self._threshold = threshold or 0.0
        self._tracks: list[_Track] = []
        self._new_identities = count(1)
        self._clip: _Clip | None = None
        self._num_clips = 0

    def __call__(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[Segmentation]:
        """The instances of each frame that can be seen in it, with their `track_id`, counted from 1.

        Args:
            frames: (H, W, 3) uint8 RGB. A frame is given out as soon as no later clip can change it.
        """
        start = 0
        for _, shot in groupby(frames, key=lambda frame: frame.shape):
            for segmentation in self._shot(shot, start):
                yield segmentation
                start += 1

    def _shot(self, frames: Iterable[NDArray[np.uint8]], start: int) -> Iterator[Segmentation]:
        """Frames of one size; the number of the first is `start`."""
        recent: deque[Sample] = deque(maxlen=self._window)
        num_read = num_shown = start
        clip: _Clip | None = None
        end_of_clip = start + self._window
        for frame in frames:
            recent.append(self._predictor.prepare(frame))
            num_read += 1
            if num_read == end_of_clip:
                clip = self._next_clip(list(recent), num_read)
                end_of_clip += self._window - self._overlap
                while num_shown < num_read - self._overlap + self._overlap // 2:
                    yield self._frame(clip, num_shown)
                    num_shown += 1
        if clip is None or clip.stop < num_read:
            clip = self._next_clip(list(recent), num_read)
        for number in range(num_shown, num_read):
            yield self._frame(clip, number)

    @torch.inference_mode()
    def _next_clip(self, samples: list[Sample], stop: int) -> _Clip:
        """The clip of these frames; the number of the last is `stop` - 1."""
        clip_input = {**samples[0], "image": [sample["image"] for sample in samples]}
        prediction: ImagePrediction = self._model.predict([clip_input])[0]
        result = video_inference(*prediction)
        queries_N = instance_candidates(prediction.class_logits, topk=len(result["pred_scores"])).queries
        kept = [index for index, score in enumerate(result["pred_scores"]) if score >= self._threshold]
        inside = without_padding(prediction.masks.select(0, queries_N[kept]), prediction.sizes) > 0
        kinds = torch.tensor([result["pred_labels"][index] for index in kept], dtype=torch.int64, device=inside.device)
        embeddings = prediction.masks.embeddings[0, queries_N[kept]]
        clip = _Clip(
            start=stop - len(samples),
            sightings=Sightings(inside, embeddings, kinds),
            scores=[result["pred_scores"][index] for index in kept],
            classes=[result["pred_labels"][index] for index in kept],
            rles=[encode_masks(result["pred_masks"][index]) for index in kept],
            identities=[],
            size=result["image_size"],
        )
        self._identify(clip)
        return clip

    def _identify(self, clip: _Clip) -> None:
        """Gives its instances their identities, and keeps it for the next one."""
        tracks = {instance: self._tracks[row] for row, instance in self._pairs(clip)}
        for instance, kind in enumerate(clip.sightings.kinds.tolist()):
            if instance not in tracks:
                tracks[instance] = _Track(next(self._new_identities), kind)
                self._tracks.append(tracks[instance])
            track = tracks[instance]
            track.embedding, track.last_clip = clip.sightings.embeddings[instance], self._num_clips
            track.instance = instance
            clip.identities.append(track.identity)
        self._tracks = [track for track in self._tracks if self._num_clips - track.last_clip < LOST_CLIPS]
        self._clip = clip
        self._num_clips += 1

    def _pairs(self, clip: _Clip) -> list[tuple[int, int]]:
        """Of a known object and an instance of the clip; masks are compared in the frames that both were seen in."""
        if self._clip is None or not self._tracks:
            return []
        shared = max(0, self._clip.stop - clip.start)
        found = clip.sightings._replace(masks=clip.sightings.masks[:, :shared])
        masks = found.masks.new_zeros(len(self._tracks), *found.masks.shape[1:])
        for index, track in enumerate(self._tracks):
            if shared and track.last_clip == self._num_clips - 1:
                masks[index] = self._clip.sightings.masks[track.instance, -shared:]
        kinds = torch.tensor([track.kind for track in self._tracks], device=found.kinds.device)
        return matched_pairs(Sightings(masks, torch.stack([track.embedding for track in self._tracks]), kinds), found)

    def _frame(self, clip: _Clip, number: int) -> Segmentation:
        """What can be seen in the frame of this number."""
        rles = [rles_T[number - clip.start] for rles_T in clip.rles]
        seen = [index for index, rle in enumerate(rles) if coco_mask.area(rle)]
        instances = Instances(clip.size)
        instances.pred_masks = RunLengthMasks([rles[index] for index in seen])
        boxes_N4 = coco_mask.toBbox([rles[index] for index in seen]).reshape(-1, 4)  # (x, y, width, height)
        boxes_N4[:, 2:] += boxes_N4[:, :2]
        instances.pred_boxes = Boxes(torch.from_numpy(boxes_N4))
        instances.scores = torch.tensor([clip.scores[index] for index in seen], dtype=torch.float64)
        instances.pred_classes = torch.tensor([clip.classes[index] for index in seen], dtype=torch.int64)
        segmentation = segmentation_of({"instances": instances}, "instance", self._classes)
        return keep_segments(segmentation, {place: clip.identities[index] for place, index in enumerate(seen)})
