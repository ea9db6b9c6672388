"""A student's features for PathoROB, from a checkout of its repository.

    python pathorob_student.py run/student camelyon tcga tolkach_esca

writes ``data/features/student``; then ``python -m pathorob.robustness_index.robustness_index --model student``.
"""

import sys

from pathorob.features import extract_features
from pathorob.models.utils import ModelWrapper

import pipeline as g2l


class Student(ModelWrapper):
    def __init__(self, folder):
        self.encoder = g2l.load_encoder(folder)

    def get_model(self):
        return self.encoder

    def get_preprocess(self):
        return self.encoder.transform

    def extract(self, data):
        return self.encoder.of_images(data)


if __name__ == "__main__":
    # in place of the models that PathoROB lists
    extract_features.load_model = lambda model_name, model_args: Student(**model_args)
    extract_features.compute("student", {"folder": sys.argv[1]}, datasets=sys.argv[2:])
