"""What stands beside a model while a request runs: LoRA, embeddings, ControlNets, an IP-Adapter, seamless borders.

    applying.py      all of them at once: what a painter uses
    lora.py          stacks of LoRA, switched by weight; lora_files.py reads their files
    embedding.py     textual inversion: words for learned vectors
    control.py       ControlNets and their pictures
    image_prompt.py  IP-Adapters

Each is loaded when first asked for, kept for the next request, and leaves the model as it was.
"""
