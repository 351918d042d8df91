"""Every configuration key that this project adds to detectron2's, with its default."""

from collections.abc import Iterator

from .compat import CfgNode as CN
from .compat import add_deeplab_config, get_cfg

DEFAULTS_KEY = "DETECTRON2_DEFAULTS"
WRAPPER_NAME = "ContrastWrapperHead"  # in MODEL.SEM_SEG_HEAD.NAME


def add_pixcontrast_config(cfg: CN, keep_defaults: bool = False) -> None:
    """Add the project's keys to ``cfg``, detectron2's DeepLab keys among them, and in place.

    Args:
        cfg: of detectron2.
        keep_defaults: leave the values of the keys that ``cfg`` has already. Otherwise some of
            detectron2's defaults are changed, where semantic segmentation wants something else
            (the input's colours and scale, the schedule, the head); each of these lines says so.

    Raises:
        ValueError: with ``keep_defaults``, ``cfg`` has a value where the project has a node.
    """
    before = cfg.clone() if keep_defaults else None
    add_deeplab_config(cfg)
    # In a config file: True = keys of detectron2 that it leaves out have detectron2's defaults
    # and not those that are changed below: for models that were written for these.
    cfg[DEFAULTS_KEY] = False
    _add_datasets(cfg)
    _add_input(cfg)
    _add_model(cfg)
    _add_pixel_contrast(cfg)
    _add_contextrast(cfg)
    _add_multi_scale_contrast(cfg)
    _add_dataset_memory(cfg)
    _add_solver(cfg)
    _add_test(cfg)
    if before is not None:
        _put_back(cfg, before)


def restore_detectron2_defaults(cfg: CN) -> None:
    """Give the keys of detectron2 the defaults that :func:`add_pixcontrast_config` changed."""
    _put_back(cfg, get_cfg())
    cfg[DEFAULTS_KEY] = True


def _put_back(cfg: CN, before: CN) -> None:
    for key, value in before.items():
        now = cfg.get(key)
        if isinstance(value, CN) and isinstance(now, CN):
            _put_back(now, value)
        elif isinstance(now, CN):
            raise ValueError(f"{key} is {value!r} in this config, and a node of keys here")
        else:
            cfg[key] = value


def flat_items(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values of a config, or of what YAML makes of one."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def inference_config(cfg: CN) -> CN:
    """A copy of ``cfg`` whose model has no training-only part.

    There are no terms and no auxiliary heads, and instead of a wrapped head the head itself. A
    data-set memory stays: the network reads it.
    """
    cfg = cfg.clone()
    cfg.defrost()
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NAME == WRAPPER_NAME and head.WRAPPED:
        head.NAME, head.WRAPPED = head.WRAPPED, ""
    head.TERMS = []
    head.AUX.IN_FEATURES = []
    return cfg


def sem_seg_folder_node() -> CN:
    """The keys of one dataset in DATASETS.SEM_SEG_FOLDERS."""
    node = CN()
    node.IMAGES = ""  # folder of the images
    node.LABELS = ""  # folder of the labels: images of class ids, grey or palette
    # Names of the ids 0..C-1, or a text file with one per line; R G B may follow each name there.
    node.CLASSES = None
    node.COLORS = []  # (R, G, B) of each class; [] = those of the file, else made up
    node.IGNORE_VALUE = 255  # id of pixels without label
    # Ends of the file names that an image and its label do not share, "_rgb.jpg" and "_mask.png";
    # "" = the extension, of any usual image format.
    node.IMAGE_SUFFIX = ""
    node.LABEL_SUFFIX = ""
    node.FLIP_PAIRS = []  # pairs of ids that change places when an image is mirrored
    return node


def complete_folders(cfg: CN, options: list[str] | None = None) -> None:
    """Give every dataset in DATASETS.SEM_SEG_FOLDERS all of its keys, and those of new ones.

    To be called between the merges of file and command line, which only knows keys that exist.

    Args:
        cfg: changed in place.
        options: KEY VALUE pairs that are to be merged; the datasets that they name are added.

    Raises:
        KeyError, ValueError: a key or value that does not belong there.
    """
    folders = cfg.DATASETS.SEM_SEG_FOLDERS
    prefix = "DATASETS.SEM_SEG_FOLDERS."
    keys = (options or [])[::2]
    named = [key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)]
    for name in dict.fromkeys((*folders, *named)):
        node = sem_seg_folder_node()
        try:
            node.merge_from_other_cfg(CN(folders.get(name, {})))
        except (KeyError, ValueError, AttributeError) as error:  # the last one: no mapping at all
            text = error.args[0] if error.args else error
            raise ValueError(f"{prefix}{name}: {text}; its keys are {', '.join(node)}") from error
        if f"{prefix}{name}.CLASSES" in keys:
            node.CLASSES = None  # a file may take the place of a list, which yacs would refuse
        folders[name] = node


def _add_datasets(cfg: CN) -> None:
    # One's own datasets: a name for DATASETS.TRAIN and TEST, and below it sem_seg_folder_node().
    cfg.DATASETS.SEM_SEG_FOLDERS = CN(new_allowed=True)


def _add_input(cfg: CN) -> None:
    cfg.INPUT.FORMAT = "RGB"  # detectron2: BGR
    cfg.INPUT.CROP.TYPE = "absolute"  # detectron2: relative_range; (height, width) in CROP.SIZE
    cfg.INPUT.MIN_SIZE_TEST = 0  # detectron2: 800. 0 = test at the image's own size
    # (height, width) that images are tested at, whatever their own is; [] = by MIN_SIZE_TEST.
    cfg.INPUT.FIXED_SIZE_TEST = []
    # Before the scale jitter the image's short edge gets this length; 0 = the image's own size.
    cfg.INPUT.BASE_SHORT_EDGE = 0
    # Scale jitter: one factor, uniform in this range, for both sides.
    cfg.INPUT.SCALE_RANGE = (0.5, 2.0)
    # Jitter of the width over the height, uniform in this range; the area stays as it is.
    cfg.INPUT.ASPECT_RANGE = (1.0, 1.0)
    cfg.INPUT.COLOR_JITTER = CN()
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.0  # added to all channels, uniform in +-this, of 255
    cfg.INPUT.COLOR_JITTER.CONTRAST = (1.0, 1.0)  # range of a factor on all channels
    cfg.INPUT.COLOR_JITTER.SATURATION = (1.0, 1.0)  # range of a factor on the distance from grey
    cfg.INPUT.COLOR_JITTER.HUE = 0.0  # shift, uniform in +-this, in degrees
    cfg.INPUT.COLOR_JITTER.PROB = 1.0  # of each of the four, independently


def _add_model(cfg: CN) -> None:
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"  # detectron2: GeneralizedRCNN
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # detectron2: in BGR order, without std
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    # Batch norm statistics over all ranks when there is more than one GPU.
    cfg.MODEL.SYNC_BN = True
    # Channels-last memory: the same network, with faster convolutions on CPUs and, in half
    # precision, on GPUs.
    cfg.MODEL.CHANNELS_LAST = False

    cfg.MODEL.TIMM = CN()  # for MODEL.BACKBONE.NAME "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "mobilenetv2_100"  # any timm model with features_only
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32  # 8 and 16 replace strides by dilation where timm can
    # "res1" (stride 2) .. "res5" (stride 32 undilated), or a vision transformer's "block0" ..
    # "block23", all of one stride; [] = all.
    cfg.MODEL.TIMM.OUT_FEATURES = []
    # Side of the images that position embeddings are stored for (any other size works, resampling
    # them in each forward); 0 = that of the pretraining.
    cfg.MODEL.TIMM.IMAGE_SIZE = 0
    cfg.MODEL.TIMM.DROP_PATH_RATE = 0.0  # stochastic depth of the deepest block
    # Images are padded to a multiple of this; 0 = the largest stride; 1 = not at all: features then
    # have ceil(side / stride) rows and columns, and logits are resized to the image itself.
    cfg.MODEL.TIMM.SIZE_DIVISIBILITY = 0
    # How HRNet's branches meet: "nearest" (timm's, of the ImageNet weights), "bilinear"
    # (mmsegmentation), "bilinear_aligned" (the segmentation networks of its authors).
    cfg.MODEL.TIMM.HRNET_FUSION = "nearest"
    # Details in which published backbones differ from timm's: "ceil_pool" (ResNet of openseg),
    # "first_relu_off" (HRNet of MCIBI), "plain_dilated_shortcuts" (ResNeSt of MCIBI),
    # "bilinear_positions" (ViT of MCIBI).
    cfg.MODEL.TIMM.VARIANTS = []
    cfg.MODEL.TIMM.OUT_NORM = ""  # "LN": a layer norm on each feature (Swin, vision transformers)

    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "PixelContrastSemSegHead"  # detectron2: SemSegFPNHead
    head.NORM = "BN"  # detectron2: GN. MODEL.SYNC_BN makes it SyncBN on several GPUs
    head.LOSS_TYPE = "cross_entropy"  # deeplab: hard_pixel_mining (OHEM), still available
    head.DECODER = "DeepLabV3PlusDecoder"  # a name in DECODER_REGISTRY
    head.TERMS = []  # names in TERM_REGISTRY; training only
    # 1: the decoder reads IN_FEATURES as one, their concatenation on the finest grid (HRNet with a
    # decoder of one feature); 2: halved by a 3x3 convolution, too; 0: as they are.
    head.JOIN_STRIDE = 0
    # Corners are aligned where features are brought to one grid and logits to the image's
    # (openseg.pytorch, ContrastiveSeg). Not within PSPDecoder and UPerDecoder.
    head.ALIGN_CORNERS = False
    # False: logits stay on their own grid and are resized once, to the output's size, where images
    # are tested at another size than their own (MCIBI). Then one image is evaluated at a time.
    head.UPSAMPLE_LOGITS = True
    head.ACTIVATION = "relu"  # of the head's convolutions; "leaky_relu" (slope .01)
    head.CLASS_WEIGHTS = []  # of the cross-entropy, one per class; [] = all 1
    head.SCALARS_PERIOD = 20  # iterations between two records of the terms' scalars
    # DeepLab decoders: norm in the ASPP's pooling branch; the convolution that joins its branches.
    head.ASPP_POOL_NORM = False
    head.ASPP_PROJECT_KERNEL = 1
    # DeepLabV3Decoder: a 3x3 convolution with norm and without ReLU behind it (openseg).
    head.ASPP_REFINE = False
    head.FCN = CN()  # FCNDecoder: one convolution on the concatenation of IN_FEATURES
    head.FCN.CHANNELS = 0  # 0 = as many as the concatenation has
    head.FCN.KERNEL_SIZE = 3
    head.FCN.DROPOUT = 0.1
    head.OCR = CN()  # OCRDecoder; its own auxiliary prediction takes AUX.LOSS_WEIGHT
    head.OCR.CHANNELS = 512  # of the pixels, the object regions and the output
    head.OCR.KEY_CHANNELS = 256  # of the attention's queries, keys and values
    head.OCR.DROPOUT = 0.05
    head.OCR.REGION_KERNEL = 1  # of the convolution before the regions' classifier; openseg: 3
    # The one of IN_FEATURES that only the object regions are predicted from (a ResNet's "res4");
    # "" = from all of IN_FEATURES, as the pixels (HRNet).
    head.OCR.REGION_FEATURE = ""
    head.PSP = CN()  # PSPDecoder
    head.PSP.CHANNELS = 512  # of each pooled map and of the output
    head.PSP.POOL_SCALES = (1, 2, 3, 6)  # the image's parts, per axis
    head.PSP.DROPOUT = 0.1
    head.UPER = CN()  # UPerDecoder, on the levels IN_FEATURES
    head.UPER.CHANNELS = 512  # of each level and of the output
    head.UPER.POOL_SCALES = (1, 2, 3, 6)  # as PSP's, on the deepest level
    head.UPER.DROPOUT = 0.1
    head.AUX = CN()  # auxiliary FCN heads on encoder features; training only
    head.AUX.IN_FEATURES = []  # one head each; [] = none
    head.AUX.CHANNELS = 256
    head.AUX.LOSS_WEIGHT = 0.4  # of loss_sem_seg_aux, be it these heads' sum or the decoder's own
    # For NAME "ContrastWrapperHead": the name of the head that the terms are attached to.
    head.WRAPPED = ""


def _add_pixel_contrast(cfg: CN) -> None:
    """Term "PixelContrast": Wang et al., ICCV 2021 (ContrastiveSeg)."""
    node = cfg.MODEL.PIXEL_CONTRAST = CN()
    node.LOSS_WEIGHT = 0.1
    # Encoder features to embed ("decoder" = the decoder's output); several are brought to the
    # size of the first and concatenated.
    node.IN_FEATURES = ["res5"]
    node.PROJECTOR = CN()
    node.PROJECTOR.TYPE = "mlp"  # "mlp" or "linear"
    node.PROJECTOR.DIM = 256
    node.PROJECTOR.NORM = "BN"  # of the mlp's hidden layer; "" = none
    node.TEMPERATURE = 0.1
    node.BASE_TEMPERATURE = 0.07  # the loss is multiplied by TEMPERATURE / BASE_TEMPERATURE
    # "per_image": groups of (image, class), as the published code; "per_class": the paper's text.
    node.SAMPLER = "per_image"
    node.MAX_SAMPLES = 1024  # "per_image": anchors per rank and step, at most
    # "per_image": anchors per (image, class), at most; a group needs more pixels than this.
    node.MAX_VIEWS = 100
    node.ANCHORS_PER_CLASS = 50  # "per_class": anchors per class, rank and step, half of them hard
    node.WARMUP = 0.125  # fraction of MAX_ITER during which the term is off (5000 of 40k)
    memory = node.MEMORY = CN()  # entries of earlier batches; filled from the first iteration on
    memory.ENABLED = False  # True: anchors are contrasted with the memory instead of each other
    memory.REGION_SIZE = 5000  # means of a class in one image, per class; 0 = no such store
    memory.PIXEL_SIZE = 5000  # single pixels, per class; 0 = no such store, none is gathered
    memory.PIXELS_PER_GROUP = 10  # pixels that each (image, class) gives, gathered over all ranks
    memory.DTYPE = "float32"  # or "bfloat16", for half the memory; the loss is float32 with both
    memory.WITH_BATCH = False  # contrast with the batch's anchors too
    mining = node.MINING = CN()  # which positives and negatives an anchor is contrasted with
    # "all"; "random"; "hardest" (nearest negatives, farthest positives); "semi_hard" (random of
    # the hardest HARD_FRACTION).
    mining.MODE = "all"
    mining.POSITIVE_MODE = ""  # of the positives alone; "" = as MODE
    mining.NUM_POSITIVES = 1024  # per anchor, at most; not for "all"
    mining.NUM_NEGATIVES = 2048
    mining.HARD_FRACTION = 0.1  # "semi_hard": share of an anchor's positives, and of its negatives
    # "contrast_set": the memory's or the batch's own; "bane": the batch's boundary-aware negatives
    # join them.
    node.NEGATIVES = "contrast_set"
    _add_bane(node)


def _add_contextrast(cfg: CN) -> None:
    """Term "Contextrast": Sung et al., CVPR 2024. Its text leaves open what is marked "open"."""
    node = cfg.MODEL.CONTEXTRAST = CN()
    node.LOSS_WEIGHT = 0.1  # alpha
    node.IN_FEATURES = ["res2", "res3", "res4", "res5"]  # the levels, from shallow to deep
    node.LEVEL_WEIGHTS = (0.1, 0.3, 0.7, 1.0)  # lambda, one per level; of the authors' next paper
    node.PROJECTOR = CN()  # one per level, as PIXEL_CONTRAST.PROJECTOR
    node.PROJECTOR.TYPE = "mlp"
    node.PROJECTOR.DIM = 256
    node.PROJECTOR.NORM = "BN"
    node.TEMPERATURE = 0.1  # open
    node.WARMUP = 0.0  # fraction of MAX_ITER during which the term is off
    anchors = node.ANCHORS = CN()  # the mean embedding of each class at each level
    # w_l, open: share of a level's own anchor when the deepest level's is mixed in, w_h = 1 - w_l.
    anchors.LOW_WEIGHT = 0.7
    anchors.NORMALIZE = True  # open: anchors get length 1 after that
    anchors.DETACH = False  # open: True = gradients reach pixels, but not the anchors
    anchors.ALL_RANKS = False  # open: True = means over the batch of all ranks
    # Positives per level and rank, evenly from all classes: a sample of them estimates their mean.
    # 4096 are 27 and more for each of up to 150 classes.
    node.MAX_POSITIVES = 4096
    # "bane"; or "random": the sampled positives of the other classes. An anchor that no error
    # serves takes the latter in any case.
    node.NEGATIVES = "bane"
    _add_bane(node)


def _add_multi_scale_contrast(cfg: CN) -> None:
    """Term "MultiScaleContrast": Pissas et al., ECCV 2022."""
    node = cfg.MODEL.MULTI_SCALE_CONTRAST = CN()
    node.LOSS_WEIGHT = 0.1  # of both losses
    node.IN_FEATURES = ["res2", "res3", "res4", "res5"]  # the scales, the finest first
    node.SCALE_WEIGHTS = (1.0, 0.7, 0.4, 0.1)  # one per scale
    node.CROSS_FEATURES = ["res5", "res4"]  # scales that the finest is contrasted with
    node.CROSS_WEIGHT = 1.0  # of each of them
    node.PROJECTOR = CN()  # one per scale; 1x1 conv, ReLU, norm, 1x1 conv, or "linear"
    node.PROJECTOR.TYPE = "mlp"
    node.PROJECTOR.DIM = 256
    node.PROJECTOR.NORM = "BN"
    node.TEMPERATURE = 0.1
    node.WARMUP = 0.0  # fraction of MAX_ITER during which the term is off
    # Pixels per scale and rank, at most. The cost of the loss grows with its square.
    node.MAX_SAMPLES = 10000
    node.MAX_VIEWS = 2500  # pixels per (image, class), at most
    node.MIN_PIXELS = 5  # an (image, class) with fewer is left out
    # "weight": every (image, class) gives what it has, and has the same weight; "min": all give as
    # many as the smallest, as the published code.
    node.BALANCE = "weight"


def _add_bane(node: CN) -> None:
    """Boundary-aware negatives of a term: Contextrast, CVPR 2024."""
    node.BANE = CN()
    # Share of an image's wrong pixels of one class that are taken: those nearest to the boundary of
    # the error.
    node.BANE.KEEP_PERCENT = 50.0
    # "other": negatives of the anchors of all classes but the pixel's own; "confused": of those of
    # the class that it is taken for.
    node.BANE.TARGET = "other"
    node.BANE.MAX_NEGATIVES = 2048  # per rank, step and level, at random where there are more


def _add_dataset_memory(cfg: CN) -> None:
    """A memory that the network reads: Jin et al., ICCV 2021 (MCIBI), and its follow-up MCIBI++."""
    node = cfg.MODEL.DATASET_MEMORY = CN()
    node.ENABLED = False  # True: between decoder and classifier, in training and at inference
    node.KIND = "features"  # entries per class (MCIBI), or "statistics": two numbers (MCIBI++)
    node.CHANNELS = 512  # D, of pixel representations, entries and the classifier's input
    node.KEY_CHANNELS = 256  # of the attentions' queries, keys and values
    # Those of SEM_SEG_HEAD.IN_FEATURES that pixel representations are made of, concatenated on the
    # finest grid; [] = the deepest one. Not with FCNDecoder, whose output they are.
    node.IN_FEATURES = []
    node.DROPOUT = 0.1  # share of channels, before each classifier; the decoder's own is off
    # The decoder's output, context within the image, is attended to ("attention", MCIBI) or read by
    # the classifier as it is ("concat", MCIBI++; also where the decoder's grid is the finer one).
    node.CONTEXT_FUSION = "attention"
    node.ENTRIES_PER_CLASS = 1  # "features": one attention each
    node.STRATEGY = "cosine"  # "features": pixels weighted by cosine distance; "mean": all alike
    node.UPDATE_AT = "label"  # resolution of the update; "grid": that of the features, cheaper
    node.MOMENTUM = 0.9  # share of what is new in an update (MCIBI++: 0.1)
    node.MOMENTUM_SCHEDULE = "lr"  # MOMENTUM follows the learning rate; "constant" (MCIBI++)
    # By class probabilities; "hard": the likeliest class alone; "zeros": zeros in place of the
    # memory, to see what the network does without it.
    node.READ = "soft"
    node.STAGE1_LOSS_WEIGHT = 0.4  # of the classifier of pixel representations
    # MCIBI++: the context is classified, too, and the memory read with that (1.0); 0 = it is not.
    node.CONTEXT_LOSS_WEIGHT = 0.0
    node.CONSISTENCY = CN()  # the classifier has to tell the entries of the memory apart
    node.CONSISTENCY.LOSS_WEIGHT = 0.0  # 1.0 as published for ADE20K
    node.CONSISTENCY.START = 0.01  # fraction of MAX_ITER before it (published: one epoch of 130)
    # Inference reads a second time, with SECOND_PASS[0] x the reading logits + SECOND_PASS[1] x the
    # final ones (MCIBI++: [0.8, 0.6]); [] = it does not.
    node.SECOND_PASS = []


def _add_solver(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "SGD"  # or "AdamW"
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"  # detectron2: WarmupMultiStepLR
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # Learning rate at the end / at the start, which the polynomial falls to (mmsegmentation's
    # min_lr); POLY_LR_CONSTANT_ENDING instead cuts it off at a share.
    cfg.SOLVER.POLY_LR_END = 0.0
    cfg.SOLVER.WARMUP_ITERS = 0  # detectron2: 1000
    cfg.SOLVER.HEAD_LR_MULTIPLIER = 1.0  # learning rate of all but the backbone / BASE_LR
    cfg.SOLVER.BACKBONE_LR_MULTIPLIER = 1.0  # learning rate of the backbone / BASE_LR
    # Of norm layers and of biases; None = as WEIGHT_DECAY, as in the published codes.
    cfg.SOLVER.WEIGHT_DECAY_NORM = None  # detectron2: 0.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = None  # detectron2: 0.0001 in version 0.5
    # Of a transformer's position embeddings, relative position biases and class tokens.
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.SOLVER.AMP.DTYPE = "float16"  # of SOLVER.AMP.ENABLED; or "bfloat16"
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 0  # of model_<iteration>.pth, the newest; 0 = all
    # Steps in a row that are skipped where a loss or gradient is not finite; 0 = training stops.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0
    # A total loss above this times the median of the last 20 is logged with its images; 0 = never.
    cfg.SOLVER.LOSS_SPIKE_FACTOR = 5.0
    # Evaluation result whose best checkpoint is kept as model_best.pth; "" = none is kept. With
    # several DATASETS.TEST it is the mean of them, or "NAME/sem_seg/mIoU" that of one.
    cfg.SOLVER.BEST_CHECKPOINT_METRIC = "sem_seg/mIoU"


def _add_test(cfg: CN) -> None:
    # TEST.AUG is detectron2's: with ENABLED the final evaluation, --eval-only and predict run the
    # model at several scales, and with FLIP mirrored too. MIN_SIZES and MAX_SIZE are not used.
    cfg.TEST.AUG.SCALES = [0.75, 1.0, 1.25, 1.5, 1.75, 2.0]  # factors on the size of INPUT.*_TEST
    sliding = cfg.TEST.SLIDING = CN()  # the image in overlapping windows, at each scale
    sliding.ENABLED = False
    sliding.SIZE = (512, 1024)  # (height, width) of a window in pixels
    sliding.STRIDE = (341, 683)  # (down, right) from one window to the next, in pixels
    sliding.AVERAGE = "logits"  # where windows overlap, or "probabilities" (MCIBI)
    boundary = cfg.TEST.BOUNDARY_IOU = CN()  # IoU of the pixels near the classes' boundaries
    boundary.ENABLED = False
    # How near: below 1 a share of the image's diagonal, from 1 on pixels.
    boundary.WIDTH = 0.02
