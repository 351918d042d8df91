"""Every configuration key that this project adds to detectron2's, with its default."""

from .compat import CfgNode as CN
from .compat import add_deeplab_config

WRAPPER_NAME = "ContrastWrapperHead"  # in MODEL.SEM_SEG_HEAD.NAME


def add_pixcontrast_config(cfg: CN) -> None:
    """Add the project's keys to ``cfg``, detectron2's DeepLab keys among them.

    Changes ``cfg`` in place. Detectron2's own defaults are changed in a few places where
    semantic segmentation wants something else; each of these lines says so.
    """
    add_deeplab_config(cfg)
    _add_datasets(cfg)
    _add_input(cfg)
    _add_model(cfg)
    _add_pixel_contrast(cfg)
    _add_solver(cfg)


def inference_config(cfg: CN) -> CN:
    """A copy of ``cfg`` whose model has no training-only part.

    There are no terms and no auxiliary head, and instead of a wrapped head the head itself.
    """
    cfg = cfg.clone()
    cfg.defrost()
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NAME == WRAPPER_NAME and head.WRAPPED:
        head.NAME, head.WRAPPED = head.WRAPPED, ""
    head.TERMS = []
    head.AUX.IN_FEATURE = ""
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
    named = [
        key[len(prefix) :].split(".")[0] for key in (options or [])[::2] if key.startswith(prefix)
    ]
    for name in dict.fromkeys((*folders, *named)):
        node = sem_seg_folder_node()
        try:
            node.merge_from_other_cfg(CN(folders.get(name, {})))
        except (KeyError, ValueError, AttributeError) as error:  # the last one: no mapping at all
            text = error.args[0] if error.args else error
            raise ValueError(f"{prefix}{name}: {text}; its keys are {', '.join(node)}") from error
        folders[name] = node


def _add_datasets(cfg: CN) -> None:
    # One's own datasets: a name for DATASETS.TRAIN and TEST, and below it sem_seg_folder_node().
    cfg.DATASETS.SEM_SEG_FOLDERS = CN(new_allowed=True)


def _add_input(cfg: CN) -> None:
    cfg.INPUT.FORMAT = "RGB"  # detectron2: BGR
    cfg.INPUT.CROP.TYPE = "absolute"  # detectron2: relative_range; (height, width) in CROP.SIZE
    cfg.INPUT.MIN_SIZE_TEST = 0  # detectron2: 800. 0 = test at the image's own size
    # Before the scale jitter the image's short edge gets this length; 0 = the image's own size.
    cfg.INPUT.BASE_SHORT_EDGE = 0
    # Scale jitter: one factor, uniform in this range, for both sides.
    cfg.INPUT.SCALE_RANGE = (0.5, 2.0)
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

    cfg.MODEL.TIMM = CN()  # for MODEL.BACKBONE.NAME "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "mobilenetv2_100"  # any timm model with features_only
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32  # 8 and 16 replace strides by dilation where timm can
    cfg.MODEL.TIMM.OUT_FEATURES = []  # "res1" (stride 2) .. "res5" (stride 32 undilated); [] = all

    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "PixelContrastSemSegHead"  # detectron2: SemSegFPNHead
    head.NORM = "BN"  # detectron2: GN. MODEL.SYNC_BN makes it SyncBN on several GPUs
    head.LOSS_TYPE = "cross_entropy"  # deeplab: hard_pixel_mining (OHEM), still available
    head.DECODER = "DeepLabV3PlusDecoder"  # a name in DECODER_REGISTRY
    head.TERMS = []  # names in TERM_REGISTRY; training only
    head.CLASS_WEIGHTS = []  # of the cross-entropy, one per class; [] = all 1
    head.SCALARS_PERIOD = 20  # iterations between two records of the terms' scalars
    head.FCN = CN()  # FCNDecoder: one convolution on the concatenation of IN_FEATURES
    head.FCN.CHANNELS = 0  # 0 = as many as the concatenation has
    head.FCN.KERNEL_SIZE = 3
    head.FCN.DROPOUT = 0.1
    head.OCR = CN()  # OCRDecoder; its own auxiliary prediction takes AUX.LOSS_WEIGHT
    head.OCR.CHANNELS = 512  # of the pixels, the object regions and the output
    head.OCR.KEY_CHANNELS = 256  # of the attention's queries, keys and values
    head.OCR.DROPOUT = 0.05
    # The one of IN_FEATURES that only the object regions are predicted from (a ResNet's "res4");
    # "" = from all of IN_FEATURES, as the pixels (HRNet).
    head.OCR.REGION_FEATURE = ""
    head.AUX = CN()  # auxiliary FCN head on an encoder feature; training only
    head.AUX.IN_FEATURE = ""  # "" = no auxiliary head
    head.AUX.CHANNELS = 256
    head.AUX.LOSS_WEIGHT = 0.4  # of loss_sem_seg_aux, be it this head's or the decoder's own
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
    mining.NUM_POSITIVES = 1024  # per anchor, at most; not for "all"
    mining.NUM_NEGATIVES = 2048
    mining.HARD_FRACTION = 0.1  # "semi_hard": share of an anchor's positives, and of its negatives


def _add_solver(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "SGD"  # or "AdamW"
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"  # detectron2: WarmupMultiStepLR
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.WARMUP_ITERS = 0  # detectron2: 1000
    cfg.SOLVER.HEAD_LR_MULTIPLIER = 1.0  # learning rate of all but the backbone / BASE_LR
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0  # detectron2: as WEIGHT_DECAY
    cfg.SOLVER.AMP.DTYPE = "float16"  # of SOLVER.AMP.ENABLED; or "bfloat16"
    # Evaluation result whose best checkpoint is kept as model_best.pth; "" = none is kept.
    cfg.SOLVER.BEST_CHECKPOINT_METRIC = "sem_seg/mIoU"
