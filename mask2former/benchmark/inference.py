"""Inference of the two implementations, from uint8 pictures to results at their size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from mask2former.analysis import count_costs
from mask2former.benchmark.sides import Side, autocast, checked, padded, prepared_config, transformers_model
from mask2former.benchmark.workload import Workload, pictures
from mask2former.deploy.predictor import Predictor

__all__ = ["OurInference", "TransformersInference"]


class OurInference(Side):
    """This project's predictor."""

    def __init__(self, cfg: CfgNode, workload: Workload) -> None:
        self.predictor = Predictor.from_config(prepared_config(cfg, workload))
        model = checked(self.predictor.model)
        self.model = self._model = model
        self.device = model.device
        self.stopwatch = self._stopwatch(workload)
        self._pictures = pictures(workload)
        if workload.kept_queries:
            self._keep_queries(workload.kept_queries)
        self.stopwatch.watch(self.predictor, "prepare", "pre-processing")
        self.stopwatch.watch(model, "_images", "pre-processing")
        self.stopwatch.watch(model, "predict", "rest of the network")
        self.stopwatch.watch(model.backbone, "forward", "backbone")
        self.stopwatch.watch(model.sem_seg_head.pixel_decoder, "forward_features", "pixel decoder")
        self.stopwatch.watch(model.sem_seg_head.predictor, "forward", "decoder")
        self.stopwatch.watch(model, "inference", "post-processing")

    def run(self) -> None:
        with self.stopwatch.stage("rest"):
            self.predictor(self._pictures)

    @torch.inference_mode()
    def outputs(self) -> dict[str, Tensor]:
        predictions = self._model.predict(self._samples())
        return {
            "class logits": torch.stack([prediction.class_logits for prediction in predictions]),
            "mask logits": torch.cat([prediction.masks.dense().flatten(1, 2) for prediction in predictions]),
        }

    def flops(self) -> int:
        costs = count_costs(self.model, self._samples())
        # What no part has done is post-processing.
        return sum(count for part, count in costs.flops_by_part().items() if part)

    def facts(self) -> dict[str, Any]:
        return {
            **super().facts(),
            "object_mask_threshold": self._model.object_mask_threshold,
            "thing_ids": self._model.thing_ids if self._model.panoptic_on else [],
        }

    def _samples(self) -> list[dict[str, Any]]:
        return [self.predictor.prepare(picture, index) for index, picture in enumerate(self._pictures)]

    @torch.inference_mode()
    def _keep_queries(self, count: int) -> None:
        """Sets the panoptic threshold so that `count` queries of the first picture pass."""
        probabilities_QK = self._model.predict(self._samples()[:1])[0].class_logits.softmax(dim=-1)
        scores, labels = probabilities_QK.max(dim=-1)
        ranked = scores[labels != probabilities_QK.shape[1] - 1].sort(descending=True).values.tolist()
        self._model.object_mask_threshold = ranked[count] if count < len(ranked) else 0.0


class TransformersInference(Side):
    """transformers' model and image processor, with the weights, tasks and thresholds of ours."""

    def __init__(self, cfg: CfgNode, workload: Workload, facts: Mapping[str, Any]) -> None:
        import transformers

        cfg = prepared_config(cfg, workload)
        model = transformers_model(cfg, facts["weights"])
        self.model = model
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.stopwatch = self._stopwatch(workload)
        self._workload = workload
        self._pictures = pictures(workload)
        self._tasks = cfg.MODEL.MASK_FORMER.TEST
        self._threshold = facts["object_mask_threshold"]
        self._stuff_ids = set(range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)) - set(facts["thing_ids"])
        self._is_bgr = cfg.INPUT.FORMAT == "BGR"
        self._processor = transformers.Mask2FormerImageProcessor(
            do_resize=False,
            image_mean=[value / 255 for value in cfg.MODEL.PIXEL_MEAN],
            image_std=[value / 255 for value in cfg.MODEL.PIXEL_STD],
        )
        self.stopwatch.watch(self, "_prepare", "pre-processing")
        self.stopwatch.watch(self, "_predict", "rest of the network")
        self.stopwatch.watch(model.model.pixel_level_module.encoder, "forward", "backbone")
        self.stopwatch.watch(model.model.pixel_level_module.decoder, "forward", "pixel decoder")
        self.stopwatch.watch(model.model.transformer_module, "forward", "decoder")
        self.stopwatch.watch(self, "_results", "post-processing")

    @torch.inference_mode()
    def run(self) -> None:
        with self.stopwatch.stage("rest"):
            self._results(self._predict(self._prepare()))

    @torch.inference_mode()
    def outputs(self) -> dict[str, Tensor]:
        outputs = self._predict(self._prepare())
        return {"class logits": outputs.class_queries_logits, "mask logits": outputs.masks_queries_logits}

    def flops(self) -> int:
        return count_costs(self.model, self._prepare()).total_flops  # type: ignore[arg-type]

    def _prepare(self) -> Tensor:
        images = [picture[:, :, ::-1].copy() if self._is_bgr else picture for picture in self._pictures]
        return padded(self._processor(images, return_tensors="pt")["pixel_values"].to(self.device))

    def _predict(self, pixels: Tensor) -> Any:
        with autocast(self.device, self._workload):
            outputs = self.model(pixel_values=pixels)
        # Its post-processing turns tensors into arrays, which have no bfloat16.
        outputs.class_queries_logits = outputs.class_queries_logits.float()
        outputs.masks_queries_logits = outputs.masks_queries_logits.float()
        return outputs

    def _results(self, outputs: Any) -> list[Any]:
        sizes = [self._workload.size] * self._workload.batch_size
        results: list[Any] = []
        if self._tasks.SEMANTIC_ON:
            results.append(self._processor.post_process_semantic_segmentation(outputs, target_sizes=sizes))
        if self._tasks.PANOPTIC_ON:
            results.append(
                self._processor.post_process_panoptic_segmentation(
                    outputs,
                    threshold=self._threshold,
                    overlap_mask_area_threshold=self._tasks.OVERLAP_THRESHOLD,
                    label_ids_to_fuse=self._stuff_ids,
                    target_sizes=sizes,
                )
            )
        if self._tasks.INSTANCE_ON:
            results.append(
                self._processor.post_process_instance_segmentation(
                    outputs, threshold=0.0, target_sizes=sizes, return_binary_maps=True
                )
            )
        return results
