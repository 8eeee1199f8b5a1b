from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InstructionScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INSTRUCTION_SCOPE_UNSPECIFIED: _ClassVar[InstructionScope]
    INSTRUCTION_SCOPE_BOTH: _ClassVar[InstructionScope]
    INSTRUCTION_SCOPE_INSTRUCT_ONLY: _ClassVar[InstructionScope]

class Recipe(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECIPE_UNSPECIFIED: _ClassVar[Recipe]
    RECIPE_WINNOW: _ClassVar[Recipe]
    RECIPE_REWARDBENCH: _ClassVar[Recipe]

class Normalization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NORMALIZATION_UNSPECIFIED: _ClassVar[Normalization]
    NORMALIZATION_SUM: _ClassVar[Normalization]
    NORMALIZATION_MEAN: _ClassVar[Normalization]

class EosPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EOS_POLICY_UNSPECIFIED: _ClassVar[EosPolicy]
    EOS_POLICY_INCLUDE: _ClassVar[EosPolicy]
    EOS_POLICY_EXCLUDE: _ClassVar[EosPolicy]
    EOS_POLICY_IF_FINISHED: _ClassVar[EosPolicy]

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_OK: _ClassVar[Status]
    STATUS_EMPTY_COMPLETION: _ClassVar[Status]
    STATUS_TOO_LONG: _ClassVar[Status]
    STATUS_INVALID_CONVERSATION: _ClassVar[Status]
    STATUS_INVALID_TOKEN: _ClassVar[Status]
    STATUS_MISSING_EOS: _ClassVar[Status]
    STATUS_NON_FINITE: _ClassVar[Status]
    STATUS_CONTROL_TOKEN: _ClassVar[Status]
    STATUS_UNRENDERABLE: _ClassVar[Status]
INSTRUCTION_SCOPE_UNSPECIFIED: InstructionScope
INSTRUCTION_SCOPE_BOTH: InstructionScope
INSTRUCTION_SCOPE_INSTRUCT_ONLY: InstructionScope
RECIPE_UNSPECIFIED: Recipe
RECIPE_WINNOW: Recipe
RECIPE_REWARDBENCH: Recipe
NORMALIZATION_UNSPECIFIED: Normalization
NORMALIZATION_SUM: Normalization
NORMALIZATION_MEAN: Normalization
EOS_POLICY_UNSPECIFIED: EosPolicy
EOS_POLICY_INCLUDE: EosPolicy
EOS_POLICY_EXCLUDE: EosPolicy
EOS_POLICY_IF_FINISHED: EosPolicy
STATUS_UNSPECIFIED: Status
STATUS_OK: Status
STATUS_EMPTY_COMPLETION: Status
STATUS_TOO_LONG: Status
STATUS_INVALID_CONVERSATION: Status
STATUS_INVALID_TOKEN: Status
STATUS_MISSING_EOS: Status
STATUS_NON_FINITE: Status
STATUS_CONTROL_TOKEN: Status
STATUS_UNRENDERABLE: Status

class ScoreRequest(_message.Message):
    __slots__ = ("request_id", "messages", "prompt_token_ids", "completions", "options")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    messages: Messages
    prompt_token_ids: TokenIds
    completions: _containers.RepeatedCompositeFieldContainer[Completion]
    options: ScoreOptions
    def __init__(self, request_id: _Optional[str] = ..., messages: _Optional[_Union[Messages, _Mapping]] = ..., prompt_token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., completions: _Optional[_Iterable[_Union[Completion, _Mapping]]] = ..., options: _Optional[_Union[ScoreOptions, _Mapping]] = ...) -> None: ...

class Messages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Completion(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: CompletionText
    token_ids: TokenIds
    def __init__(self, text: _Optional[_Union[CompletionText, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class CompletionText(_message.Message):
    __slots__ = ("text", "is_finished")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IS_FINISHED_FIELD_NUMBER: _ClassVar[int]
    text: str
    is_finished: bool
    def __init__(self, text: _Optional[str] = ..., is_finished: bool = ...) -> None: ...

class ScoreOptions(_message.Message):
    __slots__ = ("normalization", "beta", "eos_policy", "is_reference_free", "want_token_logprobs", "instruction", "instruction_scope", "recipe")
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    BETA_FIELD_NUMBER: _ClassVar[int]
    EOS_POLICY_FIELD_NUMBER: _ClassVar[int]
    IS_REFERENCE_FREE_FIELD_NUMBER: _ClassVar[int]
    WANT_TOKEN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_SCOPE_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    normalization: Normalization
    beta: float
    eos_policy: EosPolicy
    is_reference_free: bool
    want_token_logprobs: bool
    instruction: str
    instruction_scope: InstructionScope
    recipe: Recipe
    def __init__(self, normalization: _Optional[_Union[Normalization, str]] = ..., beta: _Optional[float] = ..., eos_policy: _Optional[_Union[EosPolicy, str]] = ..., is_reference_free: bool = ..., want_token_logprobs: bool = ..., instruction: _Optional[str] = ..., instruction_scope: _Optional[_Union[InstructionScope, str]] = ..., recipe: _Optional[_Union[Recipe, str]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("request_id", "completions", "definition")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    completions: _containers.RepeatedCompositeFieldContainer[CompletionScore]
    definition: RewardDefinition
    def __init__(self, request_id: _Optional[str] = ..., completions: _Optional[_Iterable[_Union[CompletionScore, _Mapping]]] = ..., definition: _Optional[_Union[RewardDefinition, _Mapping]] = ...) -> None: ...

class RewardDefinition(_message.Message):
    __slots__ = ("recipe", "normalization", "beta", "eos_policy", "is_reference_free", "base_prompt", "instruction", "instruction_scope", "instruct_weight_hash", "base_weight_hash", "instruct_template_hash", "base_template_hash")
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    BETA_FIELD_NUMBER: _ClassVar[int]
    EOS_POLICY_FIELD_NUMBER: _ClassVar[int]
    IS_REFERENCE_FREE_FIELD_NUMBER: _ClassVar[int]
    BASE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_SCOPE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCT_WEIGHT_HASH_FIELD_NUMBER: _ClassVar[int]
    BASE_WEIGHT_HASH_FIELD_NUMBER: _ClassVar[int]
    INSTRUCT_TEMPLATE_HASH_FIELD_NUMBER: _ClassVar[int]
    BASE_TEMPLATE_HASH_FIELD_NUMBER: _ClassVar[int]
    recipe: str
    normalization: str
    beta: float
    eos_policy: str
    is_reference_free: bool
    base_prompt: str
    instruction: str
    instruction_scope: str
    instruct_weight_hash: str
    base_weight_hash: str
    instruct_template_hash: str
    base_template_hash: str
    def __init__(self, recipe: _Optional[str] = ..., normalization: _Optional[str] = ..., beta: _Optional[float] = ..., eos_policy: _Optional[str] = ..., is_reference_free: bool = ..., base_prompt: _Optional[str] = ..., instruction: _Optional[str] = ..., instruction_scope: _Optional[str] = ..., instruct_weight_hash: _Optional[str] = ..., base_weight_hash: _Optional[str] = ..., instruct_template_hash: _Optional[str] = ..., base_template_hash: _Optional[str] = ...) -> None: ...

class CompletionScore(_message.Message):
    __slots__ = ("status", "error", "reward", "instruct_logp", "base_logp", "log_ratio", "num_tokens", "normalization", "is_eos_scored", "is_truncated", "token_ids", "instruct_token_logprobs", "base_token_logprobs")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    INSTRUCT_LOGP_FIELD_NUMBER: _ClassVar[int]
    BASE_LOGP_FIELD_NUMBER: _ClassVar[int]
    LOG_RATIO_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    IS_EOS_SCORED_FIELD_NUMBER: _ClassVar[int]
    IS_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    INSTRUCT_TOKEN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BASE_TOKEN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    status: Status
    error: str
    reward: float
    instruct_logp: float
    base_logp: float
    log_ratio: float
    num_tokens: int
    normalization: Normalization
    is_eos_scored: bool
    is_truncated: bool
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    instruct_token_logprobs: _containers.RepeatedScalarFieldContainer[float]
    base_token_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., error: _Optional[str] = ..., reward: _Optional[float] = ..., instruct_logp: _Optional[float] = ..., base_logp: _Optional[float] = ..., log_ratio: _Optional[float] = ..., num_tokens: _Optional[int] = ..., normalization: _Optional[_Union[Normalization, str]] = ..., is_eos_scored: bool = ..., is_truncated: bool = ..., token_ids: _Optional[_Iterable[int]] = ..., instruct_token_logprobs: _Optional[_Iterable[float]] = ..., base_token_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("winnow_version", "instruct", "base", "base_prompt", "has_shared_tokenizer", "max_tokens", "max_completions", "token_budget", "max_message_bytes", "max_queued_tokens")
    WINNOW_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTRUCT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    BASE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    HAS_SHARED_TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_BUDGET_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    winnow_version: str
    instruct: ModelInfo
    base: ModelInfo
    base_prompt: str
    has_shared_tokenizer: bool
    max_tokens: int
    max_completions: int
    token_budget: int
    max_message_bytes: int
    max_queued_tokens: int
    def __init__(self, winnow_version: _Optional[str] = ..., instruct: _Optional[_Union[ModelInfo, _Mapping]] = ..., base: _Optional[_Union[ModelInfo, _Mapping]] = ..., base_prompt: _Optional[str] = ..., has_shared_tokenizer: bool = ..., max_tokens: _Optional[int] = ..., max_completions: _Optional[int] = ..., token_budget: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_queued_tokens: _Optional[int] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "weight_hash", "tokenizer_hash", "template_hash", "chat_template", "dtype", "device", "end_of_turn_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_HASH_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_HASH_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    END_OF_TURN_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight_hash: str
    tokenizer_hash: str
    template_hash: str
    chat_template: str
    dtype: str
    device: str
    end_of_turn_id: int
    def __init__(self, name: _Optional[str] = ..., weight_hash: _Optional[str] = ..., tokenizer_hash: _Optional[str] = ..., template_hash: _Optional[str] = ..., chat_template: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., end_of_turn_id: _Optional[int] = ...) -> None: ...
