"""Text generation, with older transformers' names, also without a GPU.

``import mamba_ssm`` imports this module, and with it transformers: most of the time that it takes,
and in vain for whoever wants the blocks alone. Up to mamba-ssm 2.2.6.post3 it imports two classes
that transformers 5 no longer has; also a text whose import cannot wait gets them. In every release
``decode`` makes two CUDA events whether it is timed or not, which a torch without CUDA refuses. Its
steps of a whole model are launched by a CUDA graph, where that is asked for.
"""

from jetson_mamba.rewrite import Expression, ImportBeside, ImportFrom, ImportLater, Override, Rebind

REMOVED = ("GreedySearchDecoderOnlyOutput", "SampleDecoderOnlyOutput")

OVERRIDE = Override(
    target="mamba_ssm.utils.generation",
    edits=(
        ImportLater(
            of="transformers.generation",
            becomes="jetson_mamba.compat.transformers_generation",
            names=(*REMOVED, "GenerateDecoderOnlyOutput", "TextStreamer"),
        ),
        ImportFrom(
            of="transformers.generation",
            becomes="jetson_mamba.compat.transformers_removed",
            names=REMOVED,
        ),
        ImportBeside(beside="torch", module="jetson_mamba.compat.cuda_events"),
        Expression(
            of="torch.cuda.Event",
            becomes="jetson_mamba.compat.cuda_events.event",
            parameter="enable_timing",
        ),
        Expression(
            of="torch.cuda.synchronize",
            becomes="jetson_mamba.compat.cuda_events.synchronize",
            parameter="enable_timing",
        ),
        ImportBeside(beside="torch", module="jetson_mamba.ops"),
        Rebind(
            of="decode",
            becomes="jetson_mamba.ops.decoding_by_graph(decode)",
            parameters=(
                *("input_ids", "model", "max_length", "top_k", "top_p", "min_p", "temperature"),
                *("repetition_penalty", "eos_token_id", "teacher_outputs", "vocab_size"),
                *("tensor_parallel", "cg", "enable_timing", "output_scores", "streamer"),
            ),
        ),
    ),
    required=False,
)
