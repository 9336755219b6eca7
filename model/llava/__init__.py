"""What makes a language model a LLaVA model, except the mixins themselves (model.llava_arch)."""
