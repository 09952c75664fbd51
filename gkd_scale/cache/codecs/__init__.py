"""How teacher tokens become arrays on disk.

A codec owns the patch tokens only; CLS is always fp16 and separate (0.4% of the bytes). All of them
decode to fp16, which is what a BatchSource delivers; beyond fp16's range nothing is stored.

==========  ==============  =============================================================================
name        bytes a value   what it does
==========  ==============  =============================================================================
``fp16``    2               rounds; the reference
``bf16``    2               rounds, 8 bits of mantissa; stored as uint16
``int8``    1               rotates channels (randomised Hadamard), then int8 with one scale a token
``fp8``     1               e4m3 with one scale a token; stored as uint8
``pcaK``    K / C           the K leading principal components, rotated, as int8 with one scale a token
``tcB``     B / 8           transform coding: all components, B bits a value on average, most to the largest
==========  ==============  =============================================================================

Why rotate: a few channels of a transformer's tokens are 20 times the others and would set the step for
all. An orthogonal mix of the channels spreads them out; distances and dot products stay as they are.

To add a codec: a file here with a subclass of :class:`.base.Codec`, and its row in :mod:`.registry`. A
codec that must be fitted first is a :class:`.base.FittedCodec`; its state is kept in the cache as
``codec.safetensors``.
"""
