"""``python -m d2_pixcontrast.demo``"""

from . import main

main()
