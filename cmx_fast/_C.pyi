# No names: importing it registers the operators in torch.ops.cmx_fast.
