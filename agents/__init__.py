"""Agents: who decides where to look. Every one answers Stable-Baselines3's ``predict()``."""

from agents.attention import AdditiveAttention, AttentionConfig, load_attention, save_attention
from agents.base import Agent
from agents.hard_attention import HardAttentionAgent
from agents.loading import AGENT_NAMES, AgentSpec, find_agent, load_agent
from agents.scripted import CenterAgent, OracleAgent, RandomAgent, RasterScanAgent, UniformAgent
from agents.soft_attention import SoftAttentionAgent

__all__ = [
    "AGENT_NAMES",
    "AdditiveAttention",
    "Agent",
    "AgentSpec",
    "AttentionConfig",
    "CenterAgent",
    "HardAttentionAgent",
    "OracleAgent",
    "RandomAgent",
    "RasterScanAgent",
    "SoftAttentionAgent",
    "UniformAgent",
    "find_agent",
    "load_agent",
    "load_attention",
    "save_attention",
]
