" Drives llama.vim through one completion that is accepted, and the warm-up that follows a piece of text being taken
" into its ring of context. Writes the finished text to $RESULT and quits; an error is exit code 1.
set nocompatible
execute 'set runtimepath+=' . $LLAMA_VIM
let g:llama_config = {'endpoint_fim': $ENDPOINT, 'ring_update_ms': 300, 'auto_fim': v:false, 'ring_chunk_size': 4}
runtime plugin/llama.vim

let s:polls = 0

function! s:start(timer) abort
    call setline(1, ['It was a fine morning in the old town.', 'The capital of  is a great city,',
        \ 'and the river runs through it.', 'The end.'])
    call cursor(2, 16)
    call feedkeys('i', 'n')
    call timer_start(300, function('s:ask'))
endfunction

function! s:ask(timer) abort
    call llama#fim(-1, -1, v:false, [], v:false)
    call timer_start(100, function('s:poll'), {'repeat': -1})
endfunction

function! s:poll(timer) abort
    let s:polls += 1
    if s:polls > 100
        call writefile(['no hint', mode(), string(g:cache_data)], $RESULT)
        cquit 1
    endif
    if llama#is_fim_hint_shown()
        call timer_stop(a:timer)
        call timer_start(100, function('s:accept'))
    endif
endfunction

function! s:accept(timer) abort
    call llama#fim_accept('full')
    call writefile(getline(1, '$'), $RESULT)
    call feedkeys("\<Esc>ggyG", 'n')
    call timer_start(2500, {-> execute('qall!')})
endfunction

autocmd VimEnter * call timer_start(200, function('s:start'))
