# Where Shapes lies: in data/ of a clone, whatever the working directory. The configs that an
# installed package carries, in mmlavit/.mim, look in data/ of the working directory.
data_root = (
    'data/shapes'
    if '/mmlavit/.mim/' in '{{ fileDirname }}'
    else '{{ fileDirname }}/../../../data/shapes'
)
