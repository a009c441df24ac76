"""Types of kernels' arguments: pointers to device memory. Scalars are `tl.int32` or `tl.float32`."""

import triton.language as tl

i8p = tl.pointer_type(tl.int8)
u8p = tl.pointer_type(tl.uint8)
u16p = tl.pointer_type(tl.uint16)
i32p = tl.pointer_type(tl.int32)
i64p = tl.pointer_type(tl.int64)
f32p = tl.pointer_type(tl.float32)
