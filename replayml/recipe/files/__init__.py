"""Model files: a recipe and its weights on disk, verified when read and replaced as a whole when written.

=============  ==========================================================
``regular``    opening what must be a regular file
``atomic``     replacing a file as a whole
``sums``       digests of many bytes
``container``  sealed weights
``state``      what is known of a built model beside its recipe
``manifest``   which files of a folder are the model
``reading``    model files, read and verified
``storing``    model files, written
``dense``      tensors that a file can hold
``archive``    checkpoints, looked at before torch reads them
``weights``    from stored tensors to the weights of a model
=============  ==========================================================
"""
