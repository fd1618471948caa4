-- llama.vim at $LLAMA_VIM. A test does not wait for the 128 tokens of its defaults.
vim.opt.runtimepath:append(vim.env.LLAMA_VIM)
vim.g.llama_config = { endpoint_fim = vim.env.ENDPOINT .. "/infill", n_predict = 8 }
vim.cmd.runtime("plugin/llama.vim")

return {
  ask = function() vim.fn["llama#fim"](-1, -1, false, {}, false) end,
  is_shown = function() return vim.fn["llama#is_fim_hint_shown"]() end,
  accept = function() vim.fn["llama#fim_accept"]("full") end,
}
